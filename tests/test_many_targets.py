"""T relevances of each sample in one call are what T calls make of them."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rapkernels import reference
from rapkernels.testing import LAYOUTS, SAMPLES, Sampler, assert_same_relevance, convert
from tests.test_ops import DTYPES, agree

OPERATIONS = [
    "relprop_max_pool",
    "relprop_avg_pool",
    "relprop_adaptive_max_pool",
    "relprop_adaptive_avg_pool",
    "relprop_add",
    "share_squares",
    "relprop_sharing_conv",
    "relprop_sharing_linear",
]
TARGETS = 3


def calls(name: str, dtype: torch.dtype, batch: int = 2) -> list[tuple[Any, ...]]:
    """The arguments of one call for each target: the same but for the state that comes in."""
    drawn = [SAMPLES[name](Sampler(dtype, seed=seed, batch=batch)) for seed in range(TARGETS)]
    return [
        tuple(
            own if parameter in ("relevance", "psi", "scale") else first
            for parameter, own, first in zip(parameters(name), arguments, drawn[0], strict=False)
        )
        for arguments in drawn
    ]


def parameters(name: str) -> list[str]:
    return list(inspect.signature(getattr(reference, name)).parameters)


def together(name: str, targets: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(
        torch.cat(values) if parameter in ("relevance", "psi", "scale") else values[0]
        for parameter, *values in zip(parameters(name), *targets, strict=False)
    )


def part(result: tuple[Tensor, ...], target: int) -> tuple[Tensor, ...]:
    return tuple(tensor.chunk(TARGETS)[target] for tensor in result)


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_call_is_as_many_calls(operations: ModuleType, name: str) -> None:
    targets = calls(name, torch.float64)
    result = getattr(operations, name)(*together(name, targets))
    for index, arguments in enumerate(targets):
        alone = getattr(operations, name)(*arguments)
        # Nothing but the algorithms of the convolutions may depend on the size of the batch.
        assert_same_relevance(name, part(result, index), alone, 1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_dtype_and_layout(
    native: ModuleType, name: str, dtype: torch.dtype, layout: str
) -> None:
    arguments = together(name, calls(name, dtype))
    agree(native, name, convert(arguments, LAYOUTS[layout]), dtype)


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_have_the_format_of_the_input(native: ModuleType, name: str) -> None:
    arguments = convert(together(name, calls(name, torch.float32)), LAYOUTS["channels_last"])
    values, *_ = getattr(native, name)(*arguments)
    if values.dim() == 4:
        assert values.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.built_extension
@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(native: ModuleType, name: str) -> None:
    assert native
    for layout in LAYOUTS.values():
        arguments = convert(together(name, calls(name, torch.float32)), layout)
        torch.library.opcheck(getattr(torch.ops.rapkernels, name).default, arguments)


@pytest.mark.parametrize("name", OPERATIONS)
def test_many_targets_of_no_samples(operations: ModuleType, name: str) -> None:
    arguments = together(name, calls(name, torch.float32, batch=0))
    assert all(len(tensor) == 0 for tensor in getattr(operations, name)(*arguments))


@pytest.mark.parametrize("name", OPERATIONS)
def test_relevance_of_too_few_samples_is_refused(operations: ModuleType, name: str) -> None:
    arguments = list(together(name, calls(name, torch.float64)))
    index = parameters(name).index("relevance")
    for samples in (1, 5):
        arguments[index] = together(name, calls(name, torch.float64))[index][:samples]
        with pytest.raises(
            RuntimeError, match=rf"^{name}: relevance must have (the|a multiple of the) "
        ):
            getattr(operations, name)(*arguments)
