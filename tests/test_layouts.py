"""The layout that a tensor's strides suggest is the one that torch finds."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from rapkernels.layouts import memory_format_of

SIZES = (0, 1, 2, 3)


def laid_out(x: Tensor) -> list[Tensor]:
    """A tensor in several layouts: dense, sliced, permuted and expanded."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    dense = [x] if last is None else [x, x.contiguous(memory_format=last)]
    wide = [torch.cat([one, one], 1)[:, : x.shape[1]] for one in dense]
    thin = [one[..., :1] for one in dense] + [one[:1] for one in dense]
    expanded = [x[:, :1].expand(x.shape), x[:1].expand(x.shape)] if 0 not in x.shape else []
    return [*dense, *wide, *thin, *expanded, x.movedim(1, -1), x.movedim(-1, 1), x.transpose(0, 1)]


@pytest.mark.parametrize("dimensions", [2, 3, 4, 5])
def test_the_layout_is_that_of_torch(dimensions: int) -> None:
    for shape in product(SIZES, repeat=dimensions):
        for x in laid_out(torch.empty(shape)):
            assert memory_format_of(x) is suggest_memory_format(x), (shape, x.stride())
