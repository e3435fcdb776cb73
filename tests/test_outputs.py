"""``output=`` chooses which tensor of what a model returns is explained; the rest costs nothing."""

from __future__ import annotations

import functools
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.outputs import read_output, select_output
from tests.explainers import METHODS, explainer
from tests.networks import conv, images, seeded

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")

Pair = namedtuple("Pair", ["logits", "other"])


@dataclass
class Record:
    logits: Tensor
    other: Any = None


class Both(OrderedDict[str, Tensor]):
    """As the outputs of Hugging Face's models are."""

    def __init__(self, logits: Tensor, other: Tensor) -> None:
        super().__init__(logits=logits, other=other)


class Heads(nn.Module):
    """Two heads on one body, returned as ``pack`` says."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any] = lambda a, b: (a, b)) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3), nn.ReLU())
        self.first = nn.Linear(4, 5)
        self.second = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        y = self.body(x).mean((2, 3))
        return self.pack(self.first(y), self.second(y))


def heads(pack: Callable[[Tensor, Tensor], Any] = lambda a, b: (a, b)) -> nn.Module:
    return seeded(lambda: Heads(pack))


@functools.cache
def both() -> nn.Module:
    """Both heads as a tuple, exported once for all tests."""
    return heads()


@functools.cache
def alone(index: int) -> nn.Module:
    """One head by itself, exported once for all tests."""
    return heads(lambda a, b: (a, b)[index])


PACKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "tuple": (lambda a, b: (a, b), 1),
    "list from the end": (lambda a, b: [a, b], -1),
    "dict": (lambda a, b: {"one": a, "two": b}, "two"),
    "dict of ints": (lambda a, b: {3: a, 4: b}, 4),
    "key with a dot": (lambda a, b: {"a.b": b, "a": {"b": a}}, "a.b"),
    "named tuple": (lambda a, b: Pair(a, b), "other"),
    "named tuple by position": (lambda a, b: Pair(a, b), 1),
    "dataclass": (lambda a, b: Record(b, a), "logits"),
    "a dict that is a dataclass": (lambda a, b: Both(b, a), "logits"),
    "nested": (lambda a, b: {"x": [a, Record(a, {"deep": b})]}, ("x", 1, "other", "deep")),
    "dotted": (lambda a, b: {"x": [a, Record(a, {"deep": b})]}, "x.1.other.deep"),
    "container of one": (lambda a, b: {"x": {"only": b}, "y": a}, "x"),
    "beside no tensors": (lambda a, b: (a, {"two": b, "none": None, "size": 3}), 1),
}


@pytest.mark.parametrize("name", PACKS)
def test_every_container(name: str) -> None:
    pack, output = PACKS[name]
    first, second = torch.zeros(2, 5), torch.zeros(2, 3)
    assert select_output(pack(first, second), read_output(output), "Net") is second


@pytest.mark.parametrize(
    "pack",
    [lambda _, b: {"out": b}, lambda _, b: Record(b), lambda _, b: [b, None], lambda _, b: b],
    ids=["dict", "dataclass", "beside none", "a tensor"],
)
def test_a_container_of_one_needs_no_choice(pack: Any) -> None:
    second = torch.zeros(2, 3)
    assert select_output(pack(None, second), (), "Net") is second


@pytest.mark.parametrize("name", ["dataclass", "nested"])
def test_containers_that_export_does_not_know(name: str) -> None:
    pack, output = PACKS[name]
    found = rk.LRP(heads(pack), output=output).attribute(images(), 2)
    assert torch.equal(found, rk.LRP(alone(1)).attribute(images(), 2))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, index: int) -> None:
    x = images()
    found, single = explainer(method, both(), output=index), explainer(method, alone(index))
    assert torch.equal(found.attribute(x), single.attribute(x))
    assert torch.equal(found.attribute_targets(x, [2, 0]), single.attribute_targets(x, [2, 0]))


def test_the_functional_form() -> None:
    model, x = both(), images()
    for method in ("rap", "lrp", "class_distribution"):
        found = rk.attribute(model, x, 1, method, output=1)
        assert torch.equal(found, rk.attribute(alone(1), x, 1, method))
    base = rk.LRP(model, output=1)
    found = rk.attribute(model, x, 1, "class_distribution", base=base)
    assert torch.equal(found, rk.ClassDistribution(base).attribute(x, 1))
    logits = rk.ClassDistribution(base, model=alone(1)).attribute(x, 1)
    assert torch.equal(found, logits)
    with pytest.raises(ArgumentError, match="output must be None where base is an explainer"):
        rk.attribute(model, x, 1, "class_distribution", base=base, output=1)


def test_activation_patterns_of_one_output() -> None:
    found = rk.activation_pattern_prediction(both(), images(), output=1)
    assert torch.equal(found, rk.activation_pattern_prediction(alone(1), images()))


def test_other_outputs_are_not_run() -> None:
    one, two = (rk.RAP(both(), output=index).plan(images()).rows for index in (0, 1))
    assert {row.module for row in one} == {"body.0", "body.1", "", "first"}
    assert {row.module for row in two} == {"body.0", "body.1", "", *(f"second.{i}" for i in "012")}


def test_one_output_may_have_no_rule() -> None:
    model, x = heads(lambda a, b: (a, torch.cumsum(b, 1))), images()
    assert rk.RAP(model, output=0).attribute(x).shape == x.shape
    with pytest.raises(rk.errors.UnsupportedOperationError, match="cumsum"):
        rk.RAP(model, output=1).attribute(x)


def test_hooks_of_the_model_come_first() -> None:
    model, x = heads(), images()
    expected = rk.LRP(both(), output=1).attribute(x, 1)
    model.register_forward_hook(lambda _module, _args, out: {"swapped": out[1], "rest": out[0]})
    assert torch.equal(rk.LRP(model, output="swapped").attribute(x, 1), expected)


@pytest.mark.slow
def test_a_model_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_channels": 3, "embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1]}
    with torch.device("cpu"):
        config = transformers.ResNetConfig(**sizes, layer_type="basic", num_labels=5)
        config.output_hidden_states = True
        model = transformers.ResNetForImageClassification(config).eval()
        x = images(2, 32, torch.float32)
    relevance, report = rk.RAP(model, output="logits").attribute(x, 1, return_report=True)
    torch.testing.assert_close(report.score, model(x).logits[:, 1].detach())
    assert relevance.shape == x.shape
    with pytest.raises(ArgumentError, match=r"choose output='logits', output=\('hidden_states', 0"):
        rk.RAP(model).attribute(x, 1)


ERRORS: list[tuple[Any, Any, type[Exception], str]] = [
    (
        {"a": torch.ones(1), "b": [torch.ones(1), torch.ones(1)]},
        None,
        ArgumentError,
        "model must return exactly one tensor where output is None, but Net returns 3: choose "
        "output='a', output=('b', 0) or output=('b', 1)",
    ),
    (
        {"a": torch.ones(1), "b": [torch.ones(1), torch.ones(1)]},
        "c",
        ArgumentError,
        "output must name what Net returns, got 'c': choose output='a', output=('b', 0) or "
        "output=('b', 1)",
    ),
    (
        {"a": torch.ones(1), "b": [torch.ones(1), torch.ones(1)]},
        "b",
        ArgumentError,
        "output must name one tensor of what Net returns, got 'b' with 2: choose output='a', "
        "output=('b', 0) or output=('b', 1)",
    ),
    (
        (torch.ones(1), torch.ones(1)),
        2,
        ArgumentError,
        "output must name what Net returns, got 2: choose output=0 or output=1",
    ),
    (
        torch.ones(1),
        0,
        ArgumentError,
        "output must be None, since Net returns one tensor, got 0",
    ),
    (
        "text",
        None,
        ArgumentError,
        "model must return a tensor, but Net returns str without any",
    ),
    (
        None,
        1.5,
        ArgumentTypeError,
        "output must be a position, a name, a tuple of them or None, got 1.5 (float)",
    ),
    (
        None,
        ("a", True),
        ArgumentTypeError,
        "output must be a position, a name, a tuple of them or None, got ('a', True) (tuple)",
    ),
]


@pytest.mark.parametrize(("returned", "output", "kind", "message"), ERRORS)
def test_errors(returned: Any, output: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        select_output(returned, read_output(output), "Net")
    assert str(caught.value) == message


def test_errors_reach_the_caller() -> None:
    with pytest.raises(ArgumentError, match="choose output=0 or output=1"):
        rk.RAP(both(), output="logits").plan(images())
    with pytest.raises(ArgumentTypeError, match="output must be a position"):
        rk.SharingRatio(both(), output=[1])  # type: ignore[arg-type]
