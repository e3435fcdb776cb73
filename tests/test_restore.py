"""The user's module is the same before and after, also after an error."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.rules import Rule, unregister_rule
from tests.explainers import METHODS, STARTING_AT_LAYERS, explainer
from tests.networks import drawn

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


class Counter(nn.Module):
    """Writes a buffer at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def build(counting: bool = True) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    model = nn.Sequential(
        conv,
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        Counter() if counting else nn.Identity(),
        nn.Dropout(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    model.eval()
    model[4].train(False)
    model[7].train(True)
    model(images()).sum().backward()
    if counting:
        model[3].calls.zero_()
    model[0].weight.requires_grad_(False)
    model[5].register_forward_hook(lambda *_: None)
    model[8].register_full_backward_hook(lambda *_: None)
    model.to(memory_format=torch.channels_last)
    return model


def images() -> Tensor:
    return drawn(2, 3, 6, 6, seed=1)


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {
            name: (id(tensor), tensor.detach().clone(), tensor.stride(), tensor._version)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        },
        "gradients": {
            name: (id(p.grad), None if p.grad is None else p.grad.clone(), p.requires_grad)
            for name, p in model.named_parameters()
        },
        "modules": {
            name: (
                id(module),
                module.training,
                type(module).forward,
                sorted(vars(module)),
                [copy.copy(hooks) for key, hooks in vars(module).items() if "hooks" in key],
            )
            for name, module in model.named_modules()
        },
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["modules"] == after["modules"]
    for group in ("tensors", "gradients"):
        assert before[group].keys() == after[group].keys()
        for name, old in before[group].items():
            new = after[group][name]
            assert old[0] == new[0], f"{group} {name} is another object"
            assert old[2:] == new[2:], f"{group} {name} has changed"
            same = new[1] is None if old[1] is None else torch.equal(old[1], new[1])
            assert same, f"{group} {name} has other values"


@pytest.mark.parametrize("variant", ["default", "paper", "author"])
def test_after_success(variant: Any, backend: Any) -> None:
    model = build()
    before = snapshot(model)
    explainer = rk.RAP(model, variant, bounds=(-3.0, 3.0), backend=backend)
    x = images()
    for _ in range(3):
        explainer.attribute(x, layers=["1", "5"], return_report=True)
        explainer.plan(x)
        assert_same(before, snapshot(model))


@pytest.mark.parametrize("method", METHODS)
def test_after_all_methods(method: str, backend: Any) -> None:
    """What comes after a start layer runs under autograd: parameters get no gradients from it.

    Class distributions run the model itself once, so that what it writes is written.
    """
    model = build(counting="class_distribution" not in method)
    before = snapshot(model)
    made = explainer(method, model, backend=backend)
    for _ in range(2):
        made.attribute(images(), 1)
        made.attribute_targets(images(), [1, 0])
        assert_same(before, snapshot(model))


@pytest.mark.parametrize("layer", [None, "0", "1", "8"])
def test_after_starts_at_layers(layer: str | None, backend: Any) -> None:
    model = build()
    before = snapshot(model)
    rk.AttributionEquilibrium(model, layer, backend=backend).attribute(images(), 1)
    sharing = rk.SharingRatio(model, layer, backend=backend)
    sharing.attribute(images(), 1, return_report=True)
    sharing.receptive_field(images(), "0", (1, 2))
    rk.activation_pattern_prediction(model, images())
    assert_same(before, snapshot(model))


@pytest.mark.filterwarnings("ignore::rapkernels.errors.BackendWarning")
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_after_an_error_in_the_middle(method: str) -> None:
    model = build(counting="class_distribution" not in method)
    before = snapshot(model)
    options = {"layer": "6"} if method.endswith(STARTING_AT_LAYERS) else {}
    made = explainer(method, model, **options)
    rk.register_rule("aten.relu.default", Breaks)
    try:
        with pytest.raises(ZeroDivisionError):
            made.attribute(images(), 1)
    finally:
        unregister_rule("aten.relu.default")
    assert_same(before, snapshot(model))
    made.attribute(images(), 1)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("method", ["equilibrium", "sharing_ratio"])
def test_after_an_error_on_the_way_to_the_gradient(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    before = snapshot(model)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(torch.autograd, "grad", fail)
    with pytest.raises(ZeroDivisionError):
        explainer(method, model, backend="reference").attribute(images(), 1)
    assert_same(before, snapshot(model))
    assert torch.is_grad_enabled()


class Breaks(Rule):
    def backward(self, *_: Any) -> Any:
        raise ZeroDivisionError("on purpose")


def _break_a_rule(model: nn.Module, x: Tensor) -> None:
    rk.register_rule("aten.relu.default", Breaks)
    try:
        rk.attribute(model, x)
    finally:
        unregister_rule("aten.relu.default")


@pytest.mark.filterwarnings("ignore::rapkernels.errors.BackendWarning")
@pytest.mark.parametrize(
    "fail",
    [
        lambda model, x: rk.attribute(model, x, 17),
        lambda model, x: rk.attribute(model, x[:, :2]),
        lambda model, x: rk.attribute(model, x * float("nan")),
        lambda model, x: rk.RAP(model).attribute(x, layers=["nowhere"]),
        _break_a_rule,
    ],
)
def test_after_an_error(fail: Callable[[nn.Module, Tensor], Any]) -> None:
    model = build()
    before = snapshot(model)
    with pytest.raises((rk.errors.RapError, ZeroDivisionError)):
        fail(model, images())
    assert_same(before, snapshot(model))
    rk.attribute(model, images(), 1)
    assert_same(before, snapshot(model))


class Odd(nn.Module):
    """Counts its calls in Python, and holds what ``copy.deepcopy`` refuses."""

    def __init__(self, copyable: bool) -> None:
        super().__init__()
        self.calls = 0
        self.held = [] if copyable else threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1)


def test_python_side_effects_do_not_reach_the_module() -> None:
    model = Odd(copyable=True)
    rk.attribute(model, images(), 1, backend="reference")
    assert model.calls == 0


def test_a_module_that_cannot_be_copied_is_explained_too() -> None:
    model = nn.Sequential(Odd(copyable=False), nn.Linear(108, 2))
    before = snapshot(model)
    assert rk.attribute(model, images(), 1, backend="reference").shape == (2, 3, 6, 6)
    assert_same(before, snapshot(model))


def test_others_may_use_the_module_while_it_is_exported() -> None:
    """torch.export puts fake tensors into the module that it traces."""
    model = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(20)], nn.Flatten()).eval()
    x = images()
    with torch.no_grad():
        expected = model(x)
    done = threading.Event()
    differences: list[float] = []

    def use() -> None:
        with torch.no_grad():
            while not done.is_set():
                differences.append(float((model(x) - expected).abs().max()))

    user = threading.Thread(target=use)
    user.start()
    try:
        for size in range(6, 12):
            rk.attribute(model, torch.randn(1, 3, size, size), 1, backend="reference")
    finally:
        done.set()
        user.join()
    assert len(differences) > 10
    assert max(differences) < 1e-6


@pytest.mark.filterwarnings("ignore::rapkernels.errors.BackendWarning")
def test_training_goes_on_afterwards() -> None:
    """Gradients of a step after a call equal those of a step without one."""
    x = images()
    plain, explained = build(), build()
    rk.attribute(explained, x, 2)
    for model in (plain, explained):
        model.zero_grad()
        model(x).square().sum().backward()
    for one, other in zip(plain.parameters(), explained.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.filterwarnings("ignore::rapkernels.errors.BackendWarning")
def test_two_explainers_of_one_model_do_not_meet() -> None:
    model = build()
    x = images()
    first, second = rk.RAP(model), rk.RAP(model, "author")
    alone = first.attribute(x, 1), second.attribute(x, 1)
    for _ in range(2):
        assert torch.equal(first.attribute(x, 1), alone[0])
        assert torch.equal(second.attribute(x, 1), alone[1])
