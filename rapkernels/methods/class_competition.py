"""The competition of classes: each element of their maps goes to whom it is strongest for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.errors import ArgumentError, ArgumentTypeError

Scale: TypeAlias = Literal["max"] | float | None

_NARROW = (torch.float16, torch.bfloat16)


def class_competition(
    maps: Tensor,
    index: Tensor,
    temperatures: Sequence[float],
    tau: float,
    absolute: bool = True,
    scale: Scale = "max",
) -> Tensor:
    """Weigh the target's map by its share in a competition of classes, and cut what is too little.

    With ``A_k`` the map of class k, c the target, s the scale and K classes, for each element::

        M(T) = exp(T |A_c| / s) / sum_k exp(T |A_k| / s)
        M    = mean of M(T) over the temperatures
        V_c  = A_c M  where M - 1/K > tau, 0 elsewhere

    (arXiv 2503.07346; without the absolute values where ``absolute`` is false).

    Args:
        maps: ``(K, N, ...)``, finite, of any floating-point dtype; float16 and bfloat16 are
            computed in float32.
        index: ``(N,)`` int64, the place of each sample's target among the K classes.
        temperatures: the T, positive.
        tau: what the share must have above an even one.
        absolute: whether magnitudes compete, or signed values.
        scale: s; "max" is the largest magnitude in the K maps of a sample (1 where all are zero),
            None is 1.

    Returns:
        ``(N, ...)`` of the dtype of ``maps`` and in their units; finite.
    """
    values = maps.float() if maps.dtype in _NARROW else maps
    count, rows = values.shape[0], torch.arange(values.shape[1], device=values.device)
    own = values[index, rows]
    strength = values.abs() if absolute else values
    # M = 1 / sum_k exp(T (|A_k| - |A_c|) / s): nothing to cancel, and an overflow is a share of 0.
    lead = strength - strength[index, rows]
    if scale == "max":
        peak = largest_magnitude(values)
        lead = lead / torch.where(peak > 0, peak, 1).reshape(-1, *[1] * (lead.dim() - 2))
    elif scale is not None:
        lead = lead / _within(float(scale), lead.dtype)
    # The even share goes off before the mean, so that a tie is not above it by rounding.
    above = torch.zeros_like(own)
    for temperature in temperatures:
        above += 1 / (lead * _within(temperature, lead.dtype)).exp().sum(0) - 1 / count
    above /= len(temperatures)
    return torch.where(above > tau, own * (above + 1 / count), 0).to(maps.dtype)


def largest_magnitude(maps: Tensor) -> Tensor:
    """The largest magnitude ``(N,)`` in the maps ``(K, N, ...)`` of each sample."""
    return maps.abs().amax((0, *range(2, maps.dim())))


def _within(value: float, dtype: torch.dtype) -> float:
    """The nearest positive number that a dtype holds."""
    limits = torch.finfo(dtype)
    return min(max(value, limits.tiny), limits.max)


class Competition:
    """The settings of :func:`class_competition`, checked.

    Args:
        temperature: one number, or several to average over.
        tau: as in :func:`class_competition`, from 0 to below 1.
        absolute: as there.
        scale: as there; a number must be positive.

    Raises:
        ArgumentTypeError: an argument is no number where it should be one.
        ArgumentError: a number is out of range, or there is no temperature.
    """

    def __init__(
        self, temperature: float | Sequence[float], tau: float, absolute: bool, scale: Scale
    ) -> None:
        self.temperatures = _temperatures(temperature)
        self.tau = _tau(tau)
        self.absolute = absolute
        self.scale = _scale(scale)

    @override
    def __repr__(self) -> str:
        return (
            f"temperature={list(self.temperatures)}, tau={self.tau}, absolute={self.absolute}, "
            f"scale={self.scale!r}"
        )

    def __call__(self, maps: Tensor, index: Tensor) -> Tensor:
        """:func:`class_competition` with these settings."""
        return class_competition(
            maps, index, self.temperatures, self.tau, self.absolute, self.scale
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _temperatures(temperature: Any) -> tuple[float, ...]:
    several = list(temperature) if isinstance(temperature, list | tuple) else [temperature]
    if not several:
        raise ArgumentError("temperature must be a number or several, got none")
    for one in several:
        if not _is_number(one):
            raise ArgumentTypeError(
                f"temperature must be a number or a list of numbers, got {type(one).__name__}"
            )
        if not (math.isfinite(one) and one > 0):
            raise ArgumentError(f"temperature must be positive and finite, got {one}")
    return tuple(float(one) for one in several)


def _tau(tau: Any) -> float:
    if not _is_number(tau):
        raise ArgumentTypeError(f"tau must be a number, got {type(tau).__name__}")
    if not 0 <= tau < 1:
        raise ArgumentError(f"tau must be at least 0 and below 1, got {tau}")
    return float(tau)


def _scale(scale: Any) -> Scale:
    if scale is None:
        return None
    if isinstance(scale, str):
        if scale == "max":
            return "max"
        raise ArgumentError(f'scale must be "max", a positive number or None, got {scale!r}')
    if not _is_number(scale):
        raise ArgumentTypeError(
            f'scale must be "max", a positive number or None, got {type(scale).__name__}'
        )
    if not (math.isfinite(scale) and scale > 0):
        raise ArgumentError(f'scale must be "max", a positive number or None, got {scale}')
    return float(scale)
