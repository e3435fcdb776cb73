"""Sums of linear layers that the forward keeps: each way then reads the weights once."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import rapkernels as rk
from rapkernels import ops, reference
from rapkernels.composites import Composite, Gamma, ZPlus
from rapkernels.rules.linear import Linear
from rapkernels.testing import Sampler
from tests.networks import drawn, seeded

RULES: dict[str, list[float]] = {
    "rap": [],
    "rap_conv": [],
    "gamma": [0.3, 1e-3],
    "alpha_beta": [2.0, 1.0, 1e-3],
}


@pytest.mark.parametrize("rows", [(3,), (2, 5), (2, 8)], ids=str)
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_known_sums_change_no_bit(
    native: ModuleType, rule: str, dtype: torch.dtype, signed: bool, rows: tuple[int, ...]
) -> None:
    sampler = Sampler(dtype, signed=signed, batch=rows[0])
    x, weight = sampler.activation(*rows, 37), sampler.normal(21, 37)
    # Two targets of each sample.
    relevance = sampler.relevance(2 * rows[0], *rows[1:], 21)
    options: dict[str, Any] = {
        "rule": rule,
        "nonnegative": not signed,
        "parameters": RULES[rule],
        "bias": sampler.normal(21) if RULES[rule] else None,
    }
    positive, negative = native.linear_split(x, weight, not signed)
    without = native.relprop_linear(x, weight, relevance, **options)
    known = native.relprop_linear(
        x, weight, relevance, positive=positive, negative=negative, **options
    )
    assert all(torch.equal(a, b) for a, b in zip(known, without, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_their_difference_is_the_layer(operations: ModuleType, dtype: torch.dtype) -> None:
    x, weight = drawn(7, 300, dtype=dtype), drawn(11, 300, seed=1, dtype=dtype)
    positive, negative = operations.linear_split(x, weight)
    assert positive.min() > 0
    assert negative.min() > 0
    expected = x.double() @ weight.double().T
    # Rounding of two sums of 300 terms.
    tolerance = 64 * torch.finfo(dtype).eps * float((positive + negative).max())
    difference = (positive - negative).double()
    torch.testing.assert_close(difference, expected, rtol=0, atol=tolerance)


def test_sums_of_nothing_are_zero(operations: ModuleType) -> None:
    for inputs, outputs in ((0, 3), (4, 0)):
        for part in operations.linear_split(drawn(2, inputs), drawn(outputs, inputs)):
            assert torch.equal(part, torch.zeros(2, outputs))


def _plain() -> nn.Module:
    layers = [nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16, bias=False), nn.GELU()]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), *layers, nn.Linear(16, 5))


class _Tokens(nn.Module):
    """Tokens come before samples, and weights lie the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 10)
        self.turned = nn.Parameter(torch.randn(10, 8))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x.flatten(1).view(-1, 4, 12).transpose(0, 1)).relu()).relu()
        return self.last((y @ self.turned).relu().mean(0))  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {"plain": _plain, "tokens": _Tokens}
METHODS: dict[str, Callable[..., Any]] = {
    "rap": rk.RAP,
    "gamma": lambda model: rk.LRP(model, composite=Composite(Gamma(), Gamma())),
    "z_plus": lambda model: rk.LRP(model, composite=Composite(ZPlus(), ZPlus())),
    "EpsilonPlus": lambda model: rk.LRP(model, composite="EpsilonPlus"),
}


@pytest.mark.cpu_only
@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_relevance_is_that_of_sums_computed_again(
    name: str, method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeded(MODELS[name], dtype)
    x = drawn(3, 3, 4, 4, dtype=dtype)
    found = METHODS[method](model).attribute_targets(x, [0, 3])
    monkeypatch.setattr(Linear, "_from_sums", _again)
    expected = METHODS[method](model).attribute_targets(x, [0, 3])
    # The forward is rounded in another order.
    tolerance = 256 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def _again(self: Linear, ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    ctx.save(x, weight, None, bias, None)
    return torch.nn.functional.linear(x, weight, bias).movedim(0, self._batch_dim)


@pytest.mark.cpu_only
@pytest.mark.built_extension
def test_a_call_reads_the_weights_of_inner_layers_once_each_way() -> None:
    model = seeded(_plain, torch.float32)
    made = rk.RAP(model)
    x = drawn(3, 3, 4, 4)
    made.attribute(x, 0)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        made.attribute(x, 0)
    counts = {event.key: event.count for event in profiled.key_averages()}
    assert counts["rapkernels::linear_split"] == 2
    # The last layer's alone is torch's.
    assert counts["aten::linear"] == 1


@pytest.mark.cpu_only
def test_the_reference_computes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ops, reference):
        monkeypatch.setattr(module, "linear_split", None)
    made = rk.RAP(seeded(_plain, torch.float32), backend="reference")
    made.attribute(drawn(3, 3, 4, 4), 0)
