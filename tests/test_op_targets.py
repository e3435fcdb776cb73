"""Many targets: T relevances of each sample in one call are what T calls make of them."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rapkernels import reference
from rapkernels.relevance import Relevance
from rapkernels.testing import (
    CONVS,
    LAYOUTS,
    SAMPLES,
    TARGETED,
    Conv,
    Sampler,
    assert_same_relevance,
    convert,
    with_targets,
)
from tests.test_op_rules import RULES, rule_arguments
from tests.test_ops import BFLOAT16_CONV, CUDA_KERNELS, DTYPES, TOLERANCE, agree

ALL_RULES: list[tuple[str, list[float]]] = [("rap", []), ("rap_conv", []), *RULES]
IDS = [" ".join([rule, *map(str, parameters)]) for rule, parameters in ALL_RULES]


def runs_of(name: str, sampler: Sampler, targets: int) -> list[tuple[Any, ...]]:
    """The same operands with another relevance for each target."""
    runs = []
    for t in range(targets):
        other = Sampler(sampler.dtype, seed=100 + t, signed=sampler.signed, batch=sampler.batch)
        arguments = list(SAMPLES[name](sampler)) if t == 0 else list(runs[0])
        for position in TARGETED[name]:
            given = arguments[position]
            if given.dtype == torch.int64:
                arguments[position] = (given + t) % 9
            elif given.dim() > 1:
                arguments[position] = other.relevance(*given.shape)
            else:
                arguments[position] = given * 2.0**t
        runs.append(tuple(arguments))
    return runs


def positions_named(name: str, wanted: str) -> list[int]:
    names = inspect.signature(getattr(reference, name)).parameters
    return [position for position in TARGETED[name] if list(names)[position] == wanted]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("name", TARGETED)
def test_equal_single_calls(
    operations: ModuleType, name: str, targets: int, signed: bool, dtype: torch.dtype
) -> None:
    runs = runs_of(name, Sampler(dtype, signed=signed), targets)
    # The same sums in another order, and storage may round them to either side. CUDA kernels leave
    # many rows of bfloat16 to matrix products in bfloat16.
    tolerance = 2 * TOLERANCE[dtype]
    if CUDA_KERNELS and dtype == torch.bfloat16 and name in ("relprop_linear", "relprop_conv"):
        tolerance = BFLOAT16_CONV
    for layout in LAYOUTS.values():
        joined = getattr(operations, name)(*convert(with_targets(name, runs), layout))
        singles = [getattr(operations, name)(*convert(run, layout)) for run in runs]
        assert [part.dtype for part in joined] == [part.dtype for part in singles[0]]
        for index, single in enumerate(singles):
            part = tuple(tensor.chunk(targets)[index] for tensor in joined)
            assert_same_relevance(name, part, single, tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TARGETED)
def test_equal_the_reference(native: ModuleType, name: str, dtype: torch.dtype) -> None:
    for targets in (2, 7):
        arguments = with_targets(name, runs_of(name, Sampler(dtype), targets))
        for layout in LAYOUTS.values():
            agree(native, name, convert(arguments, layout), dtype)


@pytest.mark.parametrize("name", TARGETED)
def test_no_samples(operations: ModuleType, name: str) -> None:
    arguments = with_targets(name, runs_of(name, Sampler(torch.float32, batch=0), 3))
    assert all(len(tensor) == 0 for tensor in getattr(operations, name)(*arguments))


@pytest.mark.parametrize("name", [name for name in TARGETED if positions_named(name, "relevance")])
def test_samples_that_do_not_divide_are_refused(operations: ModuleType, name: str) -> None:
    whole = with_targets(name, runs_of(name, Sampler(), 3))
    (position,) = positions_named(name, "relevance")
    for samples in (1, 5):
        arguments = list(whole)
        arguments[position] = whole[position][:samples]
        with pytest.raises(
            RuntimeError, match=rf"^{name}: relevance must have (the|a multiple of the) "
        ):
            getattr(operations, name)(*arguments)


@pytest.mark.parametrize("rule", ALL_RULES, ids=IDS)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("conv", ["1d dilated, uneven", "2d wide", "2d depthwise, multiplied"])
def test_more_targets_than_are_held_at_once(
    native: ModuleType, conv: str, batch: int, rule: tuple[str, list[float]]
) -> None:
    """Convolutions take the targets in chunks; the results are joined in their layout."""
    check_targets_of(native, CONVS[conv], batch, rule)


def check_targets_of(
    native: ModuleType, conv: Conv, batch: int, rule: tuple[str, list[float]]
) -> None:
    targets = 19
    for index, layout in enumerate(LAYOUTS.values()):
        dtype = (torch.float64, torch.float32, torch.bfloat16)[index]
        sampler = Sampler(dtype, batch=batch, signed=index != 1)
        arguments = list(rule_arguments(conv, sampler, rule, z_given=True))
        psi, scale = arguments[4:6]
        arguments[3] = sampler.relevance(targets * batch, *arguments[3].shape[1:])
        arguments[4], arguments[5] = psi.repeat(targets), scale.repeat(targets)
        agree(native, "relprop_conv", convert(arguments, layout), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ALL_RULES, ids=IDS)
def test_linear_rows(native: ModuleType, rule: tuple[str, list[float]], dtype: torch.dtype) -> None:
    """Rows of x and of the relevance around what the kernels take together."""
    for batch, rows, targets in [(1, 1, 3), (1, 1, 17), (3, 1, 2), (2, 3, 5), (5, 2, 7)]:
        sampler = Sampler(dtype, batch=batch, signed=targets % 2 == 1)
        x, weight = sampler.activation(batch, rows, 37), sampler.normal(29, 37)
        psi, scale = (pending.repeat(targets) for pending in sampler.pending())
        relevance = sampler.relevance(targets * batch, rows, 29)
        options = rule[0], not sampler.signed, sampler.normal(29), rule[1]
        agree(native, "relprop_linear", (x, weight, relevance, psi, scale, *options), dtype)


def test_zbox_in_chunks(native: ModuleType) -> None:
    for batch in (1, 5):
        runs = runs_of("relprop_zbox_conv", Sampler(batch=batch), 19)
        for layout in LAYOUTS.values():
            arguments = convert(with_targets("relprop_zbox_conv", runs), layout)
            agree(native, "relprop_zbox_conv", arguments, torch.float64)


@pytest.mark.parametrize("name", TARGETED)
def test_results_keep_the_layout(native: ModuleType, name: str) -> None:
    arguments = with_targets(name, runs_of(name, Sampler(torch.float32), 3))
    values, *_ = getattr(native, name)(*convert(arguments, LAYOUTS["channels_last"]))
    if values.dim() == 4:
        assert values.is_contiguous(memory_format=torch.channels_last)


def test_chunks_keep_the_layout_of_x(native: ModuleType) -> None:
    x, weight = torch.randn(2, 16, 6, 5), torch.randn(8, 16, 3, 3)
    for targets in (1, 2, 12):
        relevance = torch.randn(2 * targets, 8, 4, 3)
        for layout in (torch.contiguous_format, torch.channels_last):
            values = native.relprop_conv(
                x.contiguous(memory_format=layout), weight, None, relevance
            )[0]
            assert values.is_contiguous(memory_format=layout)


@pytest.mark.cpu_only
def test_samples_in_parts(native: ModuleType) -> None:
    """Where S+ and S- of all samples are large, as many are done at a time as fill 32 MiB: two."""
    samples, size = 5, 500
    sampler = Sampler(torch.float64, batch=samples)
    x, weight = sampler.normal(samples, 2, size, size), sampler.normal(4, 2, 1, 2)
    relevance = sampler.relevance(samples, 4, size, size + 1)
    z = torch.nn.functional.conv2d(x, weight, padding=(0, 1))
    psi, scale = sampler.pending()

    def of(begin: int, end: int) -> tuple[Tensor, ...]:
        x_part, z_part, *state = (t[begin:end] for t in (x, z, relevance, psi, scale))
        return native.relprop_conv(x_part, weight, z_part, *state, [1, 1], [0, 0, 1, 1])

    whole = of(0, samples)
    alone = [of(n, n + 1) for n in range(samples)]
    for joined, parts in zip(whole, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(joined, torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_each_target_conserves(operations: ModuleType) -> None:
    """RAP hands on the total of every target, however large the others are."""
    sampler = Sampler(batch=2)
    x, weight = sampler.activation(2, 16, 6, 5), sampler.normal(8, 16, 3, 3)
    sizes: Tensor = (10.0 ** torch.arange(-3.0, 3.0)).double().repeat_interleave(2)
    relevance = sampler.relevance(12, 8, 4, 3) * sizes.view(-1, 1, 1, 1)
    result = operations.relprop_conv(x, weight, None, relevance)
    handed_on = Relevance(*result[:3]).total() + result[3]
    received = relevance.flatten(1).sum(1)
    unit = relevance.flatten(1).abs().sum(1)
    assert ((handed_on - received).abs() <= 1e-12 * unit).all()
