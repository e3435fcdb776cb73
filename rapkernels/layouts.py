"""Memory layouts of images and volumes."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The layout that the strides of a tensor suggest, as torch's kernels decide it.

    ``Tensor.is_contiguous`` differs: with sizes of 1 it holds for several layouts at once.
    """
    found = _CHANNELS_LAST.get(x.dim())
    sizes, strides = x.shape, x.stride()
    if found is None or strides[1] == 0:
        return torch.contiguous_format
    least = 0
    for dim in (1, *range(len(sizes) - 1, 1, -1)):
        if sizes[dim] == 0 or strides[dim] < least:
            return torch.contiguous_format
        least = strides[dim] * sizes[dim]
    # Where all but the batch is of size 1, it is that of the default.
    if sizes[0] == 0 or strides[0] < least or least == strides[1]:
        return torch.contiguous_format
    return found
