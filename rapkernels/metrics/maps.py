"""Relevance maps: what every metric takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rapkernels.errors import ArgumentError, ArgumentTypeError


def to_map(relevance: Tensor) -> Tensor:
    """The map of a relevance: the sum over its channels.

    Args:
        relevance: ``(N, C, H, W)``, or a map ``(N, H, W)``, which has no channels to sum;
            floating-point and finite.

    Returns:
        ``(N, H, W)``, float64, detached, on the device of ``relevance``.

    Raises:
        ArgumentTypeError: not a tensor, or not floating-point.
        ArgumentError: another number of dimensions, no pixel, or not finite.
    """
    _check_floating(relevance, "relevance")
    if relevance.dim() not in (3, 4):
        raise ArgumentError(
            "relevance must have shape (N, C, H, W) or (N, H, W), got shape "
            f"{list(relevance.shape)}"
        )
    values = relevance.detach().double()
    return checked_maps(values.sum(1) if values.dim() == 4 else values, "relevance")


def checked_maps(maps: Any, name: str = "maps") -> Tensor:
    """Maps as float64, detached.

    Raises:
        ArgumentTypeError: not a tensor, or not floating-point.
        ArgumentError: not of shape ``(N, H, W)`` with at least one pixel, or not finite.
    """
    _check_floating(maps, name)
    if maps.dim() != 3 or 0 in maps.shape[1:]:
        hint = ": sum the channels with rapkernels.metrics.to_map" if maps.dim() == 4 else ""
        raise ArgumentError(
            f"{name} must have shape (N, H, W) with H and W at least 1, got shape "
            f"{list(maps.shape)}{hint}"
        )
    wrong = maps.numel() - int(torch.isfinite(maps).sum())
    if wrong:
        raise ArgumentError(
            f"{name} must be finite, got {wrong} NaN or infinite entries of {maps.numel()}"
        )
    values: Tensor = maps.detach().double()
    return values


def scaled(maps: Tensor) -> Tensor:
    """Each map divided by its largest absolute value, so that no square overflows; 0 stays 0."""
    largest = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)


def _check_floating(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.dtype.is_floating_point:
        raise ArgumentTypeError(
            f"{name} must have a floating-point dtype, got "
            f"{str(value.dtype).removeprefix('torch.')}"
        )
