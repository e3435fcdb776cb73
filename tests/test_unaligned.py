"""Memory that starts one element behind a boundary of 16 bytes, as views do."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from rapkernels.testing import SAMPLES, Arguments, Sampler, convert
from tests.test_ops import DTYPES, agree


def unaligned(tensor: Tensor) -> Tensor:
    """The same values and strides at a storage offset of one element."""
    values = tensor.contiguous()
    moved = values.new_empty(values.numel() + 1)[1:].view(values.shape).copy_(values)
    assert values.numel() == 0 or moved.data_ptr() % 16 == moved.element_size() % 16
    return moved


def even(name: str, s: Sampler) -> Arguments:
    """Arguments whose sizes suit vectors of any width; those of SAMPLES do not."""
    x, weight = s.activation(s.batch, 32), s.normal(16, 32)
    image, filters = s.activation(s.batch, 16, 8, 8), s.normal(16, 16, 3, 3)
    other, incoming = s.normal(s.batch, 16, 8, 8), s.relevance(s.batch, 16, 8, 8)
    scored, pooled = s.relevance(s.batch, 16), s.relevance(s.batch, 16, 4, 4)
    psi, scale = s.pending()
    geometry = [1, 1], [1, 1, 1, 1], [1, 1], 1
    window = [2, 2], [2, 2], [0, 0]
    arguments: dict[str, Callable[[], Arguments]] = {
        "relprop_linear": lambda: (x, weight, scored, psi, scale, "rap"),
        "relprop_conv": lambda: (
            *(image, filters, None, incoming, psi, scale),
            *(*geometry, "rap_conv", not s.signed),
        ),
        "relprop_zbox_linear": lambda: (x, weight, x.amin(), x.amax(), scored, psi, scale),
        "relprop_zbox_conv": lambda: (
            *(image, filters, image.amin(), image.amax(), incoming, psi, scale),
            *geometry,
        ),
        "relprop_equilibrium_linear": lambda: (x, weight, scored, psi, scale),
        "relprop_equilibrium_conv": lambda: (
            *(image, filters, incoming, psi, scale),
            *(*geometry, 2.0),
        ),
        "relprop_first_linear": lambda: (
            *(x, weight, weight[:, 0], torch.arange(s.batch), scored[:, 0], "absolute"),
        ),
        "relprop_max_pool": lambda: (image, pooled, psi, scale, *window, [1, 1], False),
        "relprop_avg_pool": lambda: (image, pooled, psi, scale, *window, False, "absolute"),
        "relprop_adaptive_max_pool": lambda: (image, pooled, psi, scale),
        "relprop_adaptive_avg_pool": lambda: (image, pooled, psi, scale, "absolute"),
        "relprop_add": lambda: (image, other, incoming, psi, scale, "absolute"),
        "share_squares": lambda: (image, incoming, psi, scale),
        "relprop_sharing_conv": lambda: (
            *(image, filters, weight[:, 0], None, incoming, psi, scale),
            *geometry,
        ),
        "relprop_sharing_linear": lambda: (x, weight, weight[:, 0], scored, psi, scale),
        "merge": lambda: (incoming, psi, scale, other, -psi, scale),
        "apply_shift": lambda: (incoming, psi, scale),
        "split_quotient": lambda: (other, other.abs() + image.abs(), incoming, psi, "rap"),
        "gate": lambda: (image, other, psi, scale),
        "linear_split": lambda: (x, weight, not s.signed),
    }
    return arguments[name]()


@pytest.mark.parametrize("sizes", ["even", "odd"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SAMPLES)
def test_any_address(native: ModuleType, name: str, dtype: torch.dtype, sizes: str) -> None:
    for signed in (False, True):
        sampler = Sampler(dtype, signed=signed)
        arguments = even(name, sampler) if sizes == "even" else SAMPLES[name](sampler)
        agree(native, name, convert(arguments, unaligned), dtype)
        for index, value in enumerate(arguments):
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0:
                one = (*arguments[:index], unaligned(value), *arguments[index + 1 :])
                agree(native, name, one, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["relprop_max_pool", "relprop_avg_pool", "relprop_conv"])
def test_any_address_of_channels_last(native: ModuleType, name: str, dtype: torch.dtype) -> None:
    def moved(tensor: Tensor) -> Tensor:
        if tensor.dim() < 4:
            return unaligned(tensor)
        return unaligned(tensor.movedim(1, -1)).movedim(-1, 1)

    agree(native, name, convert(even(name, Sampler(dtype)), moved), dtype)
