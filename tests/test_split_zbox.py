"""The z-box of input layers by convolutions that multiply each weight once."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rapkernels import reference
from rapkernels.testing import Sampler, assert_same_relevance

pytestmark = [pytest.mark.built_extension, pytest.mark.cpu_only]

# (inputs, outputs), (height, width), kernel, stride, padding (low, high for each dimension),
# dilation. Between them: phases that no position of the kernel reaches, planes of many phases,
# fewer outputs than a register has lanes, rows and columns that nothing reads.
SHAPES = {
    "3x3": ((3, 64), (26, 31), 3, 1, [1, 1, 1, 1], 1),
    "3x3, one channel": ((1, 20), (28, 28), 3, 1, [0, 0, 0, 0], 1),
    "3x3, strided": ((3, 33), (29, 30), 3, 2, [1, 1, 1, 1], 1),
    "3x3, stride 4": ((3, 16), (29, 33), 3, 4, [1, 1, 1, 1], 1),
    "3x3, unequal padding": ((3, 32), (33, 32), 3, 2, [0, 1, 2, 1], 1),
    "3x3, dilated": ((1, 7), (25, 23), 3, 1, [2, 2, 2, 2], 2),
    "7x7, strided": ((3, 64), (43, 40), 7, 2, [3, 3, 3, 3], 1),
    "11x11, stride 4": ((3, 24), (63, 57), 11, 4, [2, 2, 2, 2], 1),
    "8x8, patches": ((3, 48), (32, 40), 8, 8, [0, 0, 0, 0], 1),
    "5x5, one position": ((2, 5), (5, 5), 5, 1, [0, 0, 0, 0], 1),
    "1x1, many channels": ((21, 3), (9, 10), 1, 1, [0, 0, 0, 0], 1),
}

# Of float32 sums of up to a few hundred terms, none of which cancel.
TOLERANCE = 2e-6


def laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """In strides that tell the format, which those of one channel need not."""
    return torch.empty_like(x, memory_format=layout).copy_(x)


def arguments(name: str, batch: int, targets: int = 1) -> list[Any]:
    (inputs, outputs), size, kernel, stride, padding, dilation = SHAPES[name]
    sampler = Sampler(torch.float32, signed=True, batch=batch)
    x = laid_out(sampler.normal(batch, inputs, *size).clamp(-2, 2), torch.channels_last)
    weight = sampler.normal(outputs, inputs, kernel, kernel)
    top, bottom, left, right = padding
    z = nn.functional.conv2d(
        nn.functional.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation
    )
    relevance = sampler.relevance(targets * batch, *z.shape[1:])
    psi = sampler.relevance(targets * batch).double() / 10
    low, high = x.new_full((1, inputs, 1, 1), -2), x.new_full((inputs, 1, 1), 2.5)
    geometry = ([stride] * 2, padding, [dilation] * 2, 1)
    return [x, weight, low, high, relevance, psi, None, *geometry, 1e-6]


def doubled(given: list[Any]) -> list[Any]:
    return [value.double() if isinstance(value, Tensor) else value for value in given]


@pytest.mark.parametrize(("batch", "targets"), [(1, 1), (3, 2), (5, 4), (17, 1)])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_reference(native: ModuleType, name: str, batch: int, targets: int) -> None:
    given = arguments(name, batch, targets)
    expected = reference.relprop_zbox_conv(*doubled(given))
    found = native.relprop_zbox_conv(*given)
    assert_same_relevance("relprop_zbox_conv", found, expected, TOLERANCE)
    # The library's path is that of any other memory format.
    given[0] = laid_out(given[0], torch.contiguous_format)
    other = native.relprop_zbox_conv(*given)
    assert_same_relevance("relprop_zbox_conv", other, expected, TOLERANCE)


@pytest.mark.parametrize("which", [[0], [1], [2], [0, 1, 2]], ids=str)
def test_inputs_without_positive_weights(native: ModuleType, which: list[int]) -> None:
    """Their lists are empty, at the start, in the middle, at the end and everywhere."""
    given = arguments("7x7, strided", 2)
    given[1][:, which] = -given[1][:, which].abs()
    expected = reference.relprop_zbox_conv(*doubled(given))
    found = native.relprop_zbox_conv(*given)
    assert_same_relevance("relprop_zbox_conv", found, expected, TOLERANCE)


@pytest.mark.parametrize("name", ["3x3", "7x7, strided"])
def test_bounds_of_any_shape_and_size(native: ModuleType, name: str) -> None:
    """Some between which x does not lie, too: z is then no sum of magnitudes, but the same sum."""
    given = arguments(name, 2)
    x = given[0]
    pairs = [
        (x.new_tensor(-2.0), x + 0.5),
        (x - 1, x.new_tensor(3.0)),
        ((x[:, :1] - 2).clamp_max(0), x.amax((2, 3), keepdim=True)),
        (x.new_full((1,), -0.5), x.new_full((1, 1), 0.25)),
    ]
    for low, high in pairs:
        given[2:4] = [low, high]
        expected = reference.relprop_zbox_conv(*doubled(given))
        # What cancels in z is felt in what it divides.
        tolerance = 1e-2 if (low > x).any() else TOLERANCE
        found = native.relprop_zbox_conv(*given)
        assert_same_relevance("relprop_zbox_conv", found, expected, tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_bits_depend_on_neither_threads_nor_batch(native: ModuleType, name: str) -> None:
    given = arguments(name, 17)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = native.relprop_zbox_conv(*given)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            again = native.relprop_zbox_conv(*given)
            assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
            for i in (0, 9, 16):
                alone = [v[i : i + 1] if k in (0, 4, 5) else v for k, v in enumerate(given)]
                found = native.relprop_zbox_conv(*alone)
                assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(found, whole, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["3x3", "3x3, unequal padding", "11x11, stride 4"])
def test_weights_in_any_layout(native: ModuleType, name: str) -> None:
    given = arguments(name, 2)
    whole = native.relprop_zbox_conv(*given)
    given[1] = given[1].transpose(2, 3).contiguous().transpose(2, 3)
    found = native.relprop_zbox_conv(*given)
    assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))


def test_inputs_at_both_bounds_get_what_is_theirs(native: ModuleType) -> None:
    """An input at its low bound has no message by w+, one at its high bound none by w-."""
    given = arguments("3x3", 3)
    x, weight = given[:2]
    given[1] = weight.abs()
    given[0] = x.clamp_min(-1)
    given[2] = torch.full_like(given[2], -1)
    values = native.relprop_zbox_conv(*given)[0]
    assert not values[given[0] == -1].any()
    assert values[given[0] > -1].all()
