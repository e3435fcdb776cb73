"""How much of a map lies on the object."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rapkernels.checks import check_choice
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.metrics.maps import checked_maps
from rapkernels.metrics.masks import Masks, checked_masks


def outside_inside_ratio(
    maps: Tensor, masks: Masks, signs: Literal["both", "positive"] = "both"
) -> Tensor:
    r"""The outside-inside relevance ratio; lower is better, 1 is no preference.

    With :math:`R^+ = \max(R, 0)`, :math:`R^- = \max(-R, 0)` and means over the pixels inside and
    outside of the mask,

    - "positive": ``mean_out R+ / mean_in R+``, which is the ratio of Lapuschkin et al. (CVPR 2016)
      for maps without negative relevance (POS in the RAP paper);
    - "both": ``(mean_out R+ + mean_in R-) / (mean_in R+ + mean_out R-)`` (ALL). The RAP paper
      (Nam et al., AAAI 2020) extends the ratio to negative relevance in words; this formula is
      inferred from them: positive outside and negative inside raise it, positive inside and
      negative outside lower it, and it equals the original without negative relevance.

    Args:
        maps: ``(N, H, W)``, floating-point, finite.
        masks: ``(N, H, W)`` bool, or boxes as in :func:`box_masks`.
        signs: "both" or "positive".

    Returns:
        ``(N,)``, float64, at least 0. 1 where both terms are 0 (a map of zeros), as for a constant
        map; infinite where only the denominator is 0; NaN where the mask is the whole image, for
        which the ratio is undefined.

    Raises:
        ArgumentTypeError: maps or masks have the wrong type.
        ArgumentError: a wrong shape, an empty mask, a box outside of the image, or unknown signs.
    """
    check_choice("signs", signs, ("both", "positive"))
    maps = checked_maps(maps)
    inside = checked_masks(masks, maps)
    positive = maps.clamp(min=0)
    against, favour = _mean(positive, ~inside), _mean(positive, inside)
    if signs == "both":
        negative = maps.neg().clamp(min=0)
        against = against + _mean(negative, inside)
        favour = favour + _mean(negative, ~inside)
    return torch.where((against == 0) & (favour == 0), 1.0, against / favour)


def region_attribution(maps: Tensor, masks: Masks) -> Tensor:
    r"""The share of positive relevance that lies inside of the mask; higher is better.

    ``sum_in R+ / sum R+``. This is the attribution localisation of Kohlbrenner et al. (IJCNN 2020)
    that is reported for Sharing Ratio Decomposition (ICLR 2024), and, with the target's cell of a
    2x2 grid as the mask (:func:`grid_masks`), the region attribution of VAR (arXiv 2503.07346),
    where chance is 0.25. That VAR's takes the positive part alone is inferred.

    Args:
        maps: ``(N, H, W)``, floating-point, finite.
        masks: ``(N, H, W)`` bool, or boxes as in :func:`box_masks`.

    Returns:
        ``(N,)``, float64, from 0 to 1; 0 where a map has no positive relevance.

    Raises:
        ArgumentTypeError: maps or masks have the wrong type.
        ArgumentError: a wrong shape, an empty mask, or a box outside of the image.
    """
    maps = checked_maps(maps)
    inside = checked_masks(masks, maps)
    positive = maps.clamp(min=0)
    part, total = (positive * inside).sum((1, 2)), positive.sum((1, 2))
    return torch.where(total > 0, part / total, 0.0).clamp(max=1)


def pointing_game(maps: Tensor, masks: Masks, tolerance: float = 15) -> Tensor:
    """Whether a map's maximum lies on the object or close to it; higher is better.

    1 where the pixel of the largest relevance has a pixel of the mask within ``tolerance``
    (Euclidean distance of their centres), else 0 (Zhang et al., IJCV 2018; 15 pixels as in
    TorchRay's protocol, which AE follows; TorchRay asks for less than the tolerance, this function
    for at most). Where pixels share the maximum: the share of them that hit. That is inferred; so
    a constant map scores the chance level and not what its first pixel happens to be.

    Args:
        maps: ``(N, H, W)``, floating-point, finite.
        masks: ``(N, H, W)`` bool, or boxes as in :func:`box_masks`.
        tolerance: in pixels, finite, at least 0.

    Returns:
        ``(N,)``, float64, from 0 to 1.

    Raises:
        ArgumentTypeError: maps or masks have the wrong type, or the tolerance is not a number.
        ArgumentError: a wrong shape, an empty mask, a box outside of the image, or a negative
            tolerance.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise ArgumentTypeError(f"tolerance must be a number, got {type(tolerance).__name__}")
    if not 0 <= tolerance < math.inf:
        raise ArgumentError(f"tolerance must be finite and at least 0, got {tolerance}")
    maps = checked_maps(maps)
    near = _dilated(checked_masks(masks, maps), tolerance)
    peaks = maps == maps.amax((1, 2), keepdim=True)
    return (peaks & near).sum((1, 2)).double() / peaks.sum((1, 2))


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean over some pixels; NaN over none."""
    return (values * where).sum((1, 2)) / where.sum((1, 2))


def _dilated(masks: Tensor, radius: float) -> Tensor:
    """The pixels within ``radius`` of a mask: the disc row by row, each row by running counts."""
    height, width = masks.shape[1:]
    counts = torch.nn.functional.pad(masks.long().cumsum(2), (1, 0))
    columns = torch.arange(width, device=masks.device)
    near = masks.clone()
    for offset in range(min(int(radius), height - 1) + 1):
        reach = math.isqrt(int(radius**2 - offset**2))
        left, right = (columns - reach).clamp(min=0), (columns + reach + 1).clamp(max=width)
        rows = counts[:, :, right] > counts[:, :, left]
        near[:, offset:] |= rows[:, : height - offset]
        near[:, : height - offset] |= rows[:, offset:]
    return near
