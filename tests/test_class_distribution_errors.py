"""Bad input to class distributions: each message names the argument, what was needed, what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.errors import (
    ArgumentError,
    ArgumentTypeError,
    NonFiniteOutputError,
    TrainingModeError,
)
from tests.networks import drawn, seeded


def classifier(outputs: int = 5) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, outputs)), torch.float32)


def weights(x: Tensor, target: Tensor) -> Tensor:
    """A base without a model: maps that differ from class to class."""
    return x * (1 + target.reshape(-1, *[1] * (x.dim() - 1)))


class Base:
    """The same, with a model, as captum's."""

    def __init__(self, forward_func: Any = None, function: Any = weights) -> None:
        self.forward_func = forward_func or classifier()
        self.function = function

    def attribute(self, x: Tensor, target: Tensor) -> Any:
        return self.function(x, target)


class Explainer(Base):
    """The same, as those of the package."""

    def attribute_targets(self, x: Tensor, targets: Tensor) -> Any:
        return torch.stack([self.function(x, one) for one in targets.unbind(1)])[1:]


def images(*shape: int) -> Tensor:
    return drawn(*(shape or (2, 3, 2, 2)))


FORMS = (
    "classes must be a list of ints, one list or row of a tensor (N, K) of ints per sample, or None"
)
BASES = (
    "base must be an explainer, an object with attribute(x, target=...) or a function "
    "f(x, target=...), got "
)
MAPS = "base must return one floating-point tensor of maps"
SEVERAL = "targets must be ints of shape (N, T) or a list of T classes for all samples, got "

SETTINGS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "no class",
        {"classes": []},
        ArgumentError,
        "classes must be at least 2 for each sample, got 0",
    ),
    (
        "one class",
        {"classes": [3]},
        ArgumentError,
        "classes must be at least 2 for each sample, got 1",
    ),
    (
        "no class in a table",
        {"classes": torch.zeros(2, 0, dtype=torch.int64)},
        ArgumentError,
        "classes must be at least 2 for each sample, got 0",
    ),
    (
        "no sample in a table",
        {"classes": torch.zeros(0, 2, dtype=torch.int64)},
        ArgumentError,
        "classes must be at least 2 for each sample, got 0",
    ),
    (
        "twice",
        {"classes": [1, 3, 1]},
        ArgumentError,
        "classes must be distinct, got 1 more than once",
    ),
    (
        "twice in a row",
        {"classes": torch.tensor([[1, 2], [4, 4]])},
        ArgumentError,
        "classes must be distinct, got 4 more than once",
    ),
    ("negative", {"classes": [1, -1]}, ArgumentError, "classes must be at least 0, got -1"),
    ("fraction", {"classes": [1, 2.5]}, ArgumentTypeError, f"{FORMS}, got an entry 2.5"),
    ("bool", {"classes": [True, 2]}, ArgumentTypeError, f"{FORMS}, got bool"),
    ("name", {"classes": "cat"}, ArgumentTypeError, f"{FORMS}, got str"),
    ("mixed", {"classes": [[1, 2], 3]}, ArgumentTypeError, f"{FORMS}, got int"),
    ("floats", {"classes": torch.ones(3)}, ArgumentTypeError, f"{FORMS}, got dtype float32"),
    (
        "three dimensions",
        {"classes": torch.ones(1, 2, 3, dtype=torch.int64)},
        ArgumentError,
        f"{FORMS}, got shape [1, 2, 3]",
    ),
    (
        "ragged",
        {"classes": [[1, 2], [1, 2, 3]]},
        ArgumentError,
        "classes must have the same number of classes for each sample, got 2 and 3",
    ),
    (
        "temperature 0",
        {"temperature": 0},
        ArgumentError,
        "temperature must be positive and finite, got 0",
    ),
    (
        "one of several",
        {"temperature": [1, -5.0]},
        ArgumentError,
        "temperature must be positive and finite, got -5.0",
    ),
    (
        "temperature without end",
        {"temperature": float("inf")},
        ArgumentError,
        "temperature must be positive and finite, got inf",
    ),
    (
        "temperature nan",
        {"temperature": float("nan")},
        ArgumentError,
        "temperature must be positive and finite, got nan",
    ),
    (
        "no temperature",
        {"temperature": []},
        ArgumentError,
        "temperature must be a number or several, got none",
    ),
    (
        "no number",
        {"temperature": "10"},
        ArgumentTypeError,
        "temperature must be a number or a list of numbers, got str",
    ),
    (
        "yes",
        {"temperature": [True]},
        ArgumentTypeError,
        "temperature must be a number or a list of numbers, got bool",
    ),
    ("tau negative", {"tau": -0.1}, ArgumentError, "tau must be at least 0 and below 1, got -0.1"),
    ("tau 1", {"tau": 1}, ArgumentError, "tau must be at least 0 and below 1, got 1"),
    (
        "tau nan",
        {"tau": float("nan")},
        ArgumentError,
        "tau must be at least 0 and below 1, got nan",
    ),
    (
        "tau without end",
        {"tau": float("inf")},
        ArgumentError,
        "tau must be at least 0 and below 1, got inf",
    ),
    ("tau none", {"tau": None}, ArgumentTypeError, "tau must be a number, got NoneType"),
    ("top 0", {"top": 0}, ArgumentError, "top must be at least 1, got 0"),
    ("top fraction", {"top": 2.0}, ArgumentTypeError, "top must be an int, got float"),
    (
        "unknown scale",
        {"scale": "mean"},
        ArgumentError,
        "scale must be \"max\", a positive number or None, got 'mean'",
    ),
    (
        "scale 0",
        {"scale": 0},
        ArgumentError,
        'scale must be "max", a positive number or None, got 0',
    ),
    (
        "scale list",
        {"scale": [1.0]},
        ArgumentTypeError,
        'scale must be "max", a positive number or None, got list',
    ),
    ("no base", {"base": None}, ArgumentTypeError, f"{BASES}NoneType"),
    ("the model", {"base": nn.Linear(2, 2)}, ArgumentTypeError, f"{BASES}Linear"),
    ("the class", {"base": rk.RAP}, ArgumentTypeError, f"{BASES}the class RAP itself"),
    (
        "model is no function",
        {"model": "resnet"},
        ArgumentTypeError,
        "model must be a function from x to logits (N, C), got str",
    ),
    (
        "no model",
        {"base": weights},
        ArgumentError,
        "model must be given where base has neither model nor forward_func and classes is None, "
        "got None",
    ),
]


@pytest.mark.parametrize(
    ("settings", "error", "message"), [case[1:] for case in SETTINGS], ids=[c[0] for c in SETTINGS]
)
def test_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        rk.ClassDistribution(**({"base": Base()} | settings))


def call(target: Any = None, base: Any = None, x: Any = None, **settings: Any) -> Callable[[], Any]:
    layers = settings.pop("layers", None)
    return lambda: rk.ClassDistribution(base or Base(), **settings).attribute(
        images() if x is None else x, target, layers
    )


def several(targets: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: rk.ClassDistribution(Base(), **settings).attribute_targets(images(), targets)


def returns(value: Callable[[Tensor, Tensor], Any]) -> Base:
    return Base(function=value)


CALLS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "set without the target",
        call(3, classes=[0, 1, 2]),
        ArgumentError,
        "classes must contain the target, got [0, 1, 2] without 3 for sample 0",
    ),
    (
        "set of one sample without the target",
        call([1, 0], classes=torch.tensor([[0, 1], [1, 2]])),
        ArgumentError,
        "classes must contain the target, got [1, 2] without 0 for sample 1",
    ),
    (
        "set without the target, no model",
        call(3, weights, classes=[0, 1, 2]),
        ArgumentError,
        "classes must contain the target, got [0, 1, 2] without 3 for sample 0",
    ),
    (
        "set without one of the targets",
        several([[1, 0], [2, 4]], classes=[0, 1, 2]),
        ArgumentError,
        "classes must contain the target, got [0, 1, 2] without 4 for sample 1",
    ),
    (
        "class out of range",
        call(1, classes=[0, 1, 5]),
        ArgumentError,
        "classes must be below the number of outputs 5, got 5",
    ),
    (
        "other number of rows",
        call(1, classes=[[0, 1]] * 3),
        ArgumentError,
        "classes must have one row per sample, 2, got 3 rows",
    ),
    (
        "target out of range",
        call(5),
        ArgumentError,
        "target must be at least 0 and below the number of outputs 5, got 5",
    ),
    (
        "target of another length",
        call([1, 2, 3]),
        ArgumentError,
        "target must have one entry per sample, 2, got 3 entries",
    ),
    (
        "target is no int",
        call(1.0),
        ArgumentTypeError,
        "target must be an int, a list, tuple or tensor with one int per sample, or None for the "
        "predicted class, got float",
    ),
    (
        "predicted class, no model",
        call(None, weights, classes=[0, 1]),
        ArgumentError,
        "model must be given where base has neither model nor forward_func and target is None, "
        "got None",
    ),
    (
        "no targets",
        several([]),
        ArgumentError,
        "targets must name at least one class for each sample, got none",
    ),
    ("targets none", several(None), ArgumentTypeError, f"{SEVERAL}NoneType"),
    ("one of them none", several([1, None]), ArgumentTypeError, f"{SEVERAL}an entry None"),
    ("a row none", several([[1], None]), ArgumentTypeError, f"{SEVERAL}an entry None"),
    (
        "targets of three dimensions",
        several(torch.ones(2, 1, 1, dtype=torch.int64)),
        ArgumentError,
        f"{SEVERAL}shape [2, 1, 1]",
    ),
    (
        "too few rows",
        several([[1, 2]]),
        ArgumentError,
        "targets must have one row per sample, 2, got 1 rows",
    ),
    (
        "too many rows",
        several(torch.ones(3, 1, dtype=torch.int64)),
        ArgumentError,
        "targets must have one row per sample, 2, got 3 rows",
    ),
    (
        "ragged targets",
        several([[1, 2], [1]]),
        ArgumentError,
        "targets must have the same number of classes for each sample, got 1 and 2",
    ),
    (
        "one of them out of range",
        several([[1, 5], [1, 0]]),
        ArgumentError,
        "target must be at least 0 and below the number of outputs 5, got 5",
    ),
    (
        "layers of a function",
        call(1, layers=["0"]),
        ArgumentError,
        "layers must be None where base has no attribute_targets, got ['0'] with Base",
    ),
    (
        "layers no list",
        call(1, layers="0"),
        ArgumentTypeError,
        "layers must be a list of module paths or None, got str",
    ),
    ("x no tensor", call(1, x=[1.0]), ArgumentTypeError, "x must be a torch.Tensor, got list"),
    (
        "x nan",
        call(1, x=torch.full((2, 3, 2, 2), float("nan"))),
        ArgumentError,
        "x must be finite, got 24 NaN or infinite entries of 24",
    ),
    (
        "x of another dtype",
        call(1, x=images().double()),
        ArgumentTypeError,
        "x must have the dtype of the model's parameters, float32, got float64",
    ),
    (
        "one output",
        call(None, Base(classifier(1))),
        ArgumentError,
        "model must return logits (N, C) of at least 2 classes, but for a batch of 2 it returns "
        "shape [2, 1]",
    ),
    (
        "no class scores",
        call(1, Base(nn.Identity())),
        ArgumentError,
        "model must return logits (N, C) of at least 2 classes, but for a batch of 2 it returns "
        "shape [2, 3, 2, 2]",
    ),
    (
        "several outputs",
        call(1, Base(lambda x: (x, x))),
        ArgumentError,
        "model must return one tensor of logits (N, C), got tuple",
    ),
    (
        "infinite logits",
        call(1, Base(lambda x: x.flatten(1) / 0)),
        NonFiniteOutputError,
        "model must return finite outputs, got NaN or infinity",
    ),
    ("maps in a tuple", call(1, returns(lambda x, _: (x,))), ArgumentError, f"{MAPS}, got tuple"),
    (
        "maps of ints",
        call(1, returns(lambda x, _: x.int())),
        ArgumentError,
        f"{MAPS}, got dtype int32",
    ),
    (
        "a map too few",
        call(1, returns(lambda x, _: x[:1])),
        ArgumentError,
        f"{MAPS} whose shape begins with [2], got shape [1, 3, 2, 2]",
    ),
    (
        "maps of a class too few",
        call(1, Explainer()),
        ArgumentError,
        f"{MAPS} whose shape begins with [3, 2], got shape [2, 2, 3, 2, 2]",
    ),
    (
        "maps of several shapes",
        call(1, returns(lambda x, target: x if target[0] == 1 else x[:, 0]), classes=[1, 2]),
        ArgumentError,
        "base must return maps of one shape for all classes, got shapes [2, 2, 2] and [2, 3, 2, 2]",
    ),
    (
        "infinite maps",
        call(1, returns(lambda x, _: x / 0)),
        ArgumentError,
        "base must return finite maps, got NaN or infinite entries",
    ),
    (
        "maps with nan",
        call(1, returns(lambda x, _: x.masked_fill(x > 0, float("nan")))),
        ArgumentError,
        "base must return finite maps, got NaN or infinite entries",
    ),
]


@pytest.mark.parametrize(
    ("attribute", "error", "message"), [case[1:] for case in CALLS], ids=[c[0] for c in CALLS]
)
def test_calls(attribute: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        attribute()


def test_train_mode_is_refused_before_the_model_runs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)).train()
    with pytest.raises(TrainingModeError, match="model must be in eval mode"):
        rk.ClassDistribution(Base(model)).attribute(images())
    assert model[1].num_batches_tracked == 0


def test_the_base_is_not_run_where_an_argument_is_wrong() -> None:
    def run(x: Tensor, target: Tensor) -> Tensor:
        pytest.fail(f"the base ran for {x} and {target}")

    with pytest.raises(ArgumentError, match="classes must contain the target"):
        rk.ClassDistribution(returns(run), [0, 1]).attribute(images(), 2)
