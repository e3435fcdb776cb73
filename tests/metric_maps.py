"""Maps and masks for the tests of the metrics."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

CHECKED = settings(derandomize=True, deadline=None, database=None, max_examples=60)
# Powers of two: scaling by them rounds nothing.
SCALES = st.integers(-30, 30).map(lambda exponent: 2.0**exponent)


def tensor(*rows: Any) -> Tensor:
    """One map, ``(1, H, W)``, float64."""
    return torch.tensor(rows, dtype=torch.float64)[None]


def mask(*rows: str) -> Tensor:
    """One mask, ``(1, H, W)``, from lines of "#" (inside) and "." (outside)."""
    return torch.tensor([[pixel == "#" for pixel in row] for row in rows])[None]


@st.composite
def maps_and_masks(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Maps with ties, zeros and all signs, and masks that are neither empty nor everything."""
    samples, height, width = draw(
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(2, 5))
    )
    pixels = height * width
    maps = [
        draw(st.lists(st.integers(-6, 6), min_size=pixels, max_size=pixels)) for _ in range(samples)
    ]
    masks = [
        draw(
            st.lists(st.booleans(), min_size=pixels, max_size=pixels).filter(
                lambda row: any(row) and not all(row)
            )
        )
        for _ in range(samples)
    ]
    shape = samples, height, width
    return torch.tensor(maps, dtype=torch.float64).view(shape) / 8, torch.tensor(masks).view(shape)
