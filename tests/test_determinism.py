"""The same input and thread count give the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rapkernels.testing import SAMPLES, Sampler

REPEATS = 20


@pytest.fixture(autouse=True)
def _any_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch is by default: what runs on a GPU must ask for a fixed order itself."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def repeat(operation: Any, arguments: tuple[Any, ...]) -> None:
    def results() -> tuple[Tensor, ...]:
        result = operation(*arguments)
        return result if isinstance(result, tuple) else (result,)

    first = results()
    for _ in range(REPEATS - 1):
        for ours, theirs in zip(results(), first, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("name", SAMPLES)
def test_repeats_are_equal(native: ModuleType, threads: int, name: str, dtype: torch.dtype) -> None:
    assert torch.get_num_threads() == threads
    repeat(getattr(native, name), SAMPLES[name](Sampler(dtype)))


# Large enough for several tasks per thread.
def test_repeats_are_equal_for_large_inputs(native: ModuleType, threads: int) -> None:
    assert torch.get_num_threads() == threads
    sampler = Sampler(torch.float32, batch=2)
    pending = sampler.pending()
    x, weight = sampler.activation(2, 1500), sampler.normal(700, 1500)
    repeat(native.relprop_linear, (x, weight, sampler.relevance(2, 700), *pending, "rap"))
    x, weight = sampler.activation(2, 16, 65, 63), sampler.normal(24, 16, 3, 3)
    incoming = sampler.relevance(2, 24, 65, 63)
    for signed in (True, False):
        operand = x if signed else x.abs()
        options = 1, 1, 1, 1, "rap_conv", not signed
        repeat(native.relprop_conv, (operand, weight, None, incoming, *pending, *options))
    pooled = sampler.relevance(2, 16, 32, 31)
    repeat(native.relprop_max_pool, (x, pooled, *pending, 3, 2, 0))
    repeat(native.relprop_avg_pool, (x, pooled, *pending, 3, 2, 0))
    repeat(native.relprop_add, (x, x.flip(0), sampler.relevance(2, 16, 65, 63), *pending))
    bounds = x.amin(), x.amax()
    repeat(native.relprop_zbox_conv, (x, weight, *bounds, incoming, *pending, 1, 1))
