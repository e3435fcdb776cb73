"""Reading and leaving the relevance state: pending shift, guards, safe range."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rapkernels.relevance import sample_view

# Denominators at or below these carry no message.
TINY = {torch.float32: 2.0**-80, torch.float64: 2.0**-500}

# A sample whose largest magnitude leaves 2^-20 .. 2^20 is rescaled.
SAFE_EXPONENT = 20

# float16 has so few exponents below 1 that its samples are kept just under its largest value.
LARGEST_EXPONENT = {torch.float16: 14}

Relprop = tuple[Tensor, Tensor, Tensor, Tensor]


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulate(tensor: Tensor) -> Tensor:
    return tensor.to(accumulate_dtype(tensor.dtype))


def sample_sum(tensor: Tensor) -> Tensor:
    """Sum of each sample in float64: ``(N,)``."""
    return tensor.flatten(1).sum(1, dtype=torch.float64)


def finite(tensor: Tensor) -> Tensor:
    """A message that overflowed counts as no message."""
    return torch.where(torch.isfinite(tensor), tensor, torch.zeros_like(tensor))


def carries_message(denominator: Tensor) -> Tensor:
    return (denominator.abs() > TINY[denominator.dtype]) & torch.isfinite(denominator)


def divide(numerator: Tensor, denominator: Tensor, where: Tensor) -> Tensor:
    """``numerator / denominator`` where asked and finite, else 0; its gradient is finite too."""
    ones = torch.ones_like(denominator)
    quotient = numerator / torch.where(where, denominator, ones)
    return torch.where(where, finite(quotient), torch.zeros_like(quotient))


def read(relevance: Tensor, psi: Tensor | None) -> Tensor:
    """The incoming relevance in the accumulate type, its pending shift applied, its scale not."""
    shifted = relevance.to(torch.float64)
    if psi is not None:
        shifted = shifted - sample_view(psi, shifted) * (relevance != 0)
    return finite(shifted.to(accumulate_dtype(relevance.dtype)))


def scale_of(scale: Tensor | None, like: Tensor) -> Tensor:
    """The pending scale as a tensor: ``(N,)`` float64."""
    if scale is not None:
        return scale
    return torch.ones(like.shape[0], dtype=torch.float64, device=like.device)


def power_of_two(exponent: Tensor) -> Tensor:
    # From the bits of the double: exp2 is not exact in every vector library.
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def safe_factor(dtype: torch.dtype, *contributions: Tensor) -> Tensor:
    """The power of two, per sample, that brings the largest magnitude into a safe range."""
    magnitudes = [part.detach().abs().flatten(1) for part in contributions]
    # The added zero gives samples without elements a maximum.
    largest = functional.pad(torch.cat(magnitudes, 1), (0, 1)).amax(1)
    target = LARGEST_EXPONENT.get(dtype, 0)
    exponent = torch.frexp(largest.to(torch.float64)).exponent.to(torch.int64) - 1
    move = (target - exponent).clamp(-1000, 1000)
    if dtype not in (torch.float16, torch.bfloat16):
        move = torch.where(exponent.abs() <= SAFE_EXPONENT, torch.zeros_like(move), move)
    return power_of_two(torch.where(largest > 0, move, torch.zeros_like(move)))


def store(contribution: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return (contribution.to(torch.float64) * sample_view(factor, contribution)).to(dtype)


def leave(
    contribution: Tensor, absorbed: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> Relprop:
    """Round to storage without a shift. ``absorbed`` is in the units of the incoming values."""
    contribution = finite(contribution)
    scale = scale_of(scale, contribution)
    factor = safe_factor(dtype, contribution)
    values = store(contribution, factor, dtype)
    return values, torch.zeros_like(scale), scale / factor, absorbed * scale


def leave_shifted(
    contribution: Tensor, total: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> Relprop:
    """Round to storage with the uniform shift to ``total`` pending (Eqs. 8-9).

    Gamma of Eq. 8 is the number of non-zero contributions, as in the authors' code. Sum and count
    are those of the rounded values, or the shift and its mask would disagree.
    """
    contribution = finite(contribution)
    scale = scale_of(scale, contribution)
    factor = safe_factor(dtype, contribution)
    values = store(contribution, factor, dtype)
    count = sample_sum(values != 0)
    met = count > 0
    psi = divide(sample_sum(values) - total * factor, count, met)
    absorbed = torch.where(met, torch.zeros_like(total), total * scale)
    return values, psi, scale / factor, absorbed
