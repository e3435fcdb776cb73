"""How alike two maps of one sample are."""

from __future__ import annotations

import torch
from torch import Tensor

from rapkernels.errors import ArgumentError
from rapkernels.metrics.maps import checked_maps, scaled


def map_correlation(maps_a: Tensor, maps_b: Tensor) -> Tensor:
    """Pearson's correlation of two maps over the pixels.

    ``<a', b'> / (||a'|| ||b'||)`` with ``a' = a - mean(a)``. Between the map of the label and that
    of the runner-up class it measures class dependence: near 1, the map says little of the class.

    Args:
        maps_a: ``(N, H, W)``, floating-point, finite.
        maps_b: the same shape.

    Returns:
        ``(N,)``, float64, from -1 to 1; 0 where a map is constant, which correlates with nothing.

    Raises:
        ArgumentTypeError: maps are not floating-point tensors.
        ArgumentError: maps have another shape, differ in shape, or are not finite.
    """
    a, b = _checked_pair(maps_a, maps_b)
    return _cosine(_centred(scaled(a).flatten(1)), _centred(scaled(b).flatten(1)))


def rank_correlation(maps_a: Tensor, maps_b: Tensor) -> Tensor:
    """Spearman's rank correlation of two maps over the pixels.

    Pearson's correlation of the ranks; pixels of equal relevance share the mean of their ranks.

    Args:
        maps_a: ``(N, H, W)``, floating-point, finite.
        maps_b: the same shape.

    Returns:
        ``(N,)``, float64, from -1 to 1; 0 where a map is constant.

    Raises:
        ArgumentTypeError: maps are not floating-point tensors.
        ArgumentError: maps have another shape, differ in shape, or are not finite.
    """
    a, b = _checked_pair(maps_a, maps_b)
    return _cosine(_centred(_ranks(a.flatten(1))), _centred(_ranks(b.flatten(1))))


def cosine_similarity(maps_a: Tensor, maps_b: Tensor) -> Tensor:
    """The cosine of the angle between two maps, ``<a, b> / (||a|| ||b||)``.

    Args:
        maps_a: ``(N, H, W)``, floating-point, finite.
        maps_b: the same shape.

    Returns:
        ``(N,)``, float64, from -1 to 1; 0 where a map is zero everywhere.

    Raises:
        ArgumentTypeError: maps are not floating-point tensors.
        ArgumentError: maps have another shape, differ in shape, or are not finite.
    """
    a, b = _checked_pair(maps_a, maps_b)
    return _cosine(scaled(a).flatten(1), scaled(b).flatten(1))


def _checked_pair(maps_a: Tensor, maps_b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = checked_maps(maps_a, "maps_a"), checked_maps(maps_b, "maps_b")
    if a.shape != b.shape:
        raise ArgumentError(
            f"maps_b must have the shape of maps_a, {list(a.shape)}, got shape {list(b.shape)}"
        )
    return a, b.to(a.device)


def _centred(values: Tensor) -> Tensor:
    # Exactly 0 for a constant map: scaled it is 1 or -1, its ranks are halves, no mean is rounded.
    return values - values.mean(1, keepdim=True)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    lengths = a.norm(dim=1) * b.norm(dim=1)
    products = (a * b).sum(1)
    return torch.where(lengths > 0, products / lengths, 0.0).clamp(-1, 1)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0 of the entries of each row; equal entries share their mean rank."""
    ordered, order = values.sort(1)
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = torch.ones_like(starts)
    ends[:, :-1] = starts[:, 1:]
    first = torch.where(starts, places, 0).cummax(1).values
    last = torch.where(ends, places, values.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(values).scatter_(1, order, (first + last).to(values.dtype) / 2)
