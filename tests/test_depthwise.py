"""Depthwise convolutions: kernels of our own for channels-last images, whatever the geometry."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from rapkernels import reference
from rapkernels.testing import Sampler, assert_same_relevance, convert

# channels, (height, width), kernel, stride, padding (low and high of each dimension), dilation.
# Between them: channels of whole blocks, whole registers and less, results that overlap, leave gaps
# and lie in the padding.
SHAPES: dict[str, tuple[int, tuple[int, int], tuple[int, int], list[int], list[int], list[int]]] = {
    "7x7": (96, (9, 8), (7, 7), [1, 1], [3, 3, 3, 3], [1, 1]),
    "3x3, strided": (83, (12, 11), (3, 3), [2, 2], [1, 1, 1, 1], [1, 1]),
    "5x3, one side padded": (5, (10, 9), (5, 3), [2, 1], [0, 2, 1, 0], [1, 1]),
    "2x2, gaps": (17, (11, 13), (2, 2), [3, 4], [0, 0, 0, 0], [1, 1]),
    "3x3, dilated": (64, (9, 10), (3, 3), [1, 2], [2, 2, 3, 3], [2, 3]),
    "more padding than reach": (16, (3, 4), (2, 3), [1, 1], [4, 4, 5, 5], [1, 1]),
}
RULES: dict[str, list[float]] = {"rap": [], "rap_conv": [], "gamma": [0.3, 1e-3]}
# Rounding of sums of up to 49 terms; "gamma" divides by a sum of both signs.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def arguments(name: str, dtype: torch.dtype, rule: str, signed: bool = True) -> list[Any]:
    channels, size, kernel, stride, padding, dilation = SHAPES[name]
    sampler = Sampler(dtype, signed=signed, batch=3)
    x = sampler.activation(3, channels, *size).contiguous(memory_format=torch.channels_last)
    weight = sampler.normal(channels, 1, *kernel)
    top, bottom, left, right = padding
    padded = nn.functional.pad(x, [left, right, top, bottom])
    shape = nn.functional.conv2d(padded, weight, None, stride, 0, dilation, channels).shape
    # Two targets.
    relevance = sampler.relevance(6, *shape[1:])
    psi = sampler.relevance(6).double() / 10
    geometry = (stride, padding, dilation, channels)
    bias = sampler.normal(channels) if RULES[rule] else None
    return [x, weight, None, relevance, psi, None, *geometry, rule, not signed, bias, RULES[rule]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_reference(native: ModuleType, name: str, dtype: torch.dtype, rule: str) -> None:
    for signed in (True, False):
        given = arguments(name, dtype, rule, signed)
        expected = reference.relprop_conv(*convert(tuple(given), lambda t: t.double()))
        found = native.relprop_conv(*given)
        assert_same_relevance("relprop_conv", found, expected, TOLERANCE[dtype])
        assert torch.equal(found[0] == 0, expected[0] == 0)


@pytest.mark.cpu_only
def test_bits_depend_neither_on_threads_nor_on_the_batch(native: ModuleType) -> None:
    given = arguments("3x3, strided", torch.float32, "rap_conv")
    whole = native.relprop_conv(*given)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        again = native.relprop_conv(*given)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    given[0], given[3], given[4] = given[0][1:2], given[3][1::3], given[4][1::3]
    alone = native.relprop_conv(*given)
    assert all(torch.equal(a[1::3], b) for a, b in zip(whole, alone, strict=True))


def test_infinite_messages_are_none(native: ModuleType) -> None:
    given = arguments("3x3, dilated", torch.float32, "rap")
    given[0][0, 3] = 3e38
    given[1][3] = 1e10
    assert all(part.isfinite().all() for part in native.relprop_conv(*given))
