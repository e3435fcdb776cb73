"""Products of matrices of many rows, which some processors do faster as convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import rapkernels as rk
from rapkernels import _library
from rapkernels.testing import Sampler
from tests.networks import drawn, seeded

pytestmark = [pytest.mark.built_extension, pytest.mark.cpu_only]

# (rows), inputs, outputs: fewer rows than are done as a convolution, so many, more, with one of
# each size, nothing.
SHAPES = [
    ((127,), 24, 40),
    ((128,), 24, 40),
    ((3, 50), 65, 33),
    ((2, 3, 64), 7, 1),
    ((300,), 1, 9),
    ((0,), 4, 5),
    ((130,), 4, 0),
]
# Sums of up to 65 terms in float32, added up in another order.
TOLERANCE = 1e-5


def product(*given: Any) -> Tensor:
    result: Tensor = _library.native().matrix_product(*given)
    return result


def _convolutions(call: Any) -> int:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        call()
    return sum(e.count for e in profiled.key_averages() if e.key == "aten::_convolution")


@contextmanager
def _convolving_in(precision: str) -> Iterator[None]:
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES, ids=str)
def test_it_is_linear(rows: tuple[int, ...], inputs: int, outputs: int, with_bias: bool) -> None:
    x, weight = drawn(*rows, inputs), drawn(outputs, inputs, seed=1)
    bias = drawn(outputs, seed=2) if with_bias else None
    found = product(x, weight, bias)
    expected = functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    assert found.shape == expected.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_are_torchs(dtype: torch.dtype) -> None:
    x, weight = drawn(200, 24, dtype=dtype), drawn(40, 24, seed=1, dtype=dtype)
    assert torch.equal(product(x, weight), functional.linear(x, weight))


def test_transposed_weights_and_rows_that_do_not_follow_each_other() -> None:
    x, weight = drawn(24, 200).t(), drawn(24, 40, seed=1).t()
    expected = functional.linear(x.double(), weight.double())
    torch.testing.assert_close(product(x, weight).double(), expected, rtol=0, atol=TOLERANCE)


def test_rows_do_not_depend_on_each_other() -> None:
    x, weight = drawn(256, 96), drawn(72, 96, seed=1)
    other = torch.cat([x[:128], drawn(128, 96, seed=2)])
    assert torch.equal(product(x, weight)[:128], product(other, weight)[:128])


def test_conv_settings_of_less_precision_are_not_used() -> None:
    x, weight = drawn(200, 96), drawn(72, 96, seed=1)
    with _convolving_in("bf16"):
        assert _convolutions(lambda: product(x, weight)) == 0


def test_weights_beyond_what_malloc_keeps_are_torchs() -> None:
    x, weight = drawn(128, 3000), drawn(3000, 3000, seed=1)
    assert _convolutions(lambda: product(x, weight)) == 0


@pytest.mark.parametrize("op", ["relprop_linear", "relprop_equilibrium_linear"])
def test_layers_of_many_rows_agree_with_the_reference(native: ModuleType, op: str) -> None:
    sampler = Sampler(torch.float32, signed=True, batch=2)
    given = (sampler.activation(2, 100, 80), sampler.normal(48, 80), sampler.relevance(2, 100, 48))
    found = getattr(native, op)(*given)[0]
    expected = getattr(rk.reference, op)(*(t.double() for t in given))[0]
    scale = float(expected.abs().max())
    # Quotients magnify rounding where the sums of a sign are small: 1e-6 seen.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * scale)


def test_both_ways_of_a_layer_are_done_alike() -> None:
    """Where the forward convolves, the way back multiplies no matrices, and the other way round."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Flatten())

    made = rk.LRP(seeded(build, torch.float32))
    x = drawn(2, 100, 64)
    made.attribute(x, 0)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        made.attribute(x, 0)
    counts = {event.key: event.count for event in profiled.key_averages()}
    convolves = _convolutions(lambda: product(x, drawn(64, 64))) == 1
    assert (counts.get("aten::mm", 0) == 0) == convolves
    assert (counts.get("aten::_convolution", 0) > 0) == convolves
