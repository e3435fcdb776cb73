"""How few pixels hold a map's relevance."""

from __future__ import annotations

import torch
from torch import Tensor

from rapkernels.metrics.maps import checked_maps, scaled


def gini(maps: Tensor) -> Tensor:
    """The Gini index of the absolute relevance; higher is sparser.

    ``sum_i (2i - n - 1) |R|_(i) / (n sum |R|)`` with ``|R|_(1) <= ... <= |R|_(n)`` the sorted
    absolute values of the n pixels (Chalasani et al., ICML 2020; the sparseness that is reported
    for Sharing Ratio Decomposition, ICLR 2024).

    Args:
        maps: ``(N, H, W)``, floating-point, finite.

    Returns:
        ``(N,)``, float64, from 0 (all pixels alike, a map of zeros included) to ``1 - 1/n`` (one
        pixel holds all).

    Raises:
        ArgumentTypeError: maps are not a floating-point tensor.
        ArgumentError: maps have another shape or are not finite.
    """
    values = scaled(checked_maps(maps).abs()).flatten(1).sort(1).values
    pixels = values.shape[1]
    weights = 2 * torch.arange(1, pixels + 1, device=values.device, dtype=values.dtype) - pixels - 1
    total = values.sum(1)
    index = (weights * values).sum(1) / (pixels * torch.where(total > 0, total, 1.0))
    # Rounding may leave a map of equal values just below 0.
    return index.clamp(min=0)
