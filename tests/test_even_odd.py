"""Linear layers of many rows and inputs of any sign: the absolute form forward and back."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels import reference
from rapkernels.testing import Sampler, assert_same_relevance, convert

pytestmark = pytest.mark.cpu_only

RULES: dict[str, list[float]] = {
    "rap": [],
    "rap_conv": [],
    "gamma": [0.3, 1e-3],
    "alpha_beta": [2.0, 1.0, 1e-3],
}
# Rounding of sums of up to 200 terms in float32, magnified by the smallest Z+ or Z- of the outputs
# and, but for "rap", by outputs whose relevance or quotients have both signs: 7e-7 and 4e-6 seen.
TOLERANCE = {"rap": 5e-6, "rap_conv": 1e-4, "gamma": 1e-4, "alpha_beta": 1e-4}


def arguments(samples: int, length: int, rule: str, targets: int = 1) -> list[Any]:
    sampler = Sampler(torch.float32, signed=True, batch=samples)
    x, weight = sampler.activation(samples, length, 101), sampler.normal(200, 101)
    relevance = sampler.relevance(targets * samples, length, 200)
    psi = sampler.relevance(targets * samples).double() / 10
    bias = None if RULES[rule] == [] else sampler.normal(200)
    return [x, weight, relevance, psi, None, rule, False, bias, RULES[rule]]


def doubled(given: list[Any]) -> tuple[Any, ...]:
    return convert(tuple(given), lambda t: t.double())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    # Fewer and more rows than are done at a time, and samples that are not a multiple of those.
    ("samples", "length", "targets"),
    [(1, 130, 1), (5, 400, 2), (2, 1100, 1), (130, 1, 1)],
)
def test_equals_the_reference(
    native: ModuleType, rule: str, samples: int, length: int, targets: int
) -> None:
    given = arguments(samples, length, rule, targets)
    expected = reference.relprop_linear(*doubled(given))
    z = given[0] @ given[1].t()
    for known in (None, z):
        found = native.relprop_linear(*given, z=known)
        assert_same_relevance("relprop_linear", found, expected, TOLERANCE[rule])


@pytest.mark.parametrize("size", [64, 96, 131])
def test_what_has_no_message_is_exactly_zero(native: ModuleType, size: int) -> None:
    """Sums of hundreds of terms cancel to the last bit, wherever the operands lie in memory."""
    sampler = Sampler(torch.float32, signed=True, batch=2)
    weight = sampler.normal(200, size)
    # Inputs 0 to 19: messages of one sign; "rap_conv" sends R < 0 through the negative alone.
    weight[:, :10] = weight[:, :10].abs()
    weight[:, 10:20] = -weight[:, 10:20].abs()
    weight[:, 20:24] = 0
    x = sampler.activation(2, 150, size)
    relevance = -sampler.relevance(2, 150, 200).abs()
    relevance[:, 7] = 0
    moved = torch.empty(weight.numel() + 1)[1:].view_as(weight).copy_(weight)
    expected = reference.relprop_linear(
        x.double(), weight.double(), relevance.double(), rule="rap_conv"
    )
    for w in (weight, moved):
        values = native.relprop_linear(x, w, relevance, rule="rap_conv")[0]
        assert torch.equal(values == 0, expected[0] == 0)
    assert 0.1 < (expected[0] == 0).double().mean() < 0.5


def test_fixed_threads_give_fixed_bits(native: ModuleType) -> None:
    given = arguments(3, 700, "rap")
    first = native.relprop_linear(*given)
    for _ in range(3):
        again = native.relprop_linear(*[v.clone() if isinstance(v, Tensor) else v for v in given])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_z_that_is_kept_is_not_overwritten(bias: bool) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(8, 64),
        nn.Linear(64, 80, bias=bias),
        nn.GELU(),
        nn.Linear(80, 64, bias=bias),
        nn.Flatten(1),
        nn.Linear(64 * 70, 5),
    )
    with torch.no_grad():
        model[-1].bias += 10
    x = torch.randn(2, 70, 8)
    found = rk.RAP(model).attribute(x, 1)
    expected = rk.RAP(model.double(), backend="reference").attribute(x.double(), 1)
    # Rounding of four layers of sums that cancel: 4e-7 of the largest entry was seen.
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
