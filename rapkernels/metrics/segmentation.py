"""A map, cut at a threshold, as a segmentation of the object."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rapkernels.checks import check_choice
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.metrics.maps import checked_maps, scaled
from rapkernels.metrics.masks import Masks, checked_masks

Threshold = Literal["zero", "mean"] | float


def pixel_accuracy(maps: Tensor, masks: Masks, threshold: Threshold = "zero") -> Tensor:
    """The share of pixels that the cut map puts on the right side; higher is better.

    ``#(foreground == mask) / #pixels``, foreground being ``R > threshold`` (RAP, Nam et al., AAAI
    2020): 0 for methods with negative relevance, the map's mean for those without. A map of zeros
    has no foreground at either threshold, a constant map none at its mean.

    Args:
        maps: ``(N, H, W)``, floating-point, finite.
        masks: ``(N, H, W)`` bool, or boxes as in :func:`box_masks`.
        threshold: "zero", "mean" (of each map), or a number. The default is that of this
            package's methods, whose relevance is signed.

    Returns:
        ``(N,)``, float64, from 0 to 1.

    Raises:
        ArgumentTypeError: maps, masks or threshold have the wrong type.
        ArgumentError: a wrong shape, an empty mask, a box outside of the image, an unknown or
            infinite threshold.
    """
    foreground, inside = _cut(maps, masks, threshold)
    return (foreground == inside).double().mean((1, 2))


def mean_iou(maps: Tensor, masks: Masks, threshold: Threshold = "zero") -> Tensor:
    """Intersection over union of the cut map and the mask; higher is better.

    ``IoU = TP / (TP + FP + FN)`` of the foreground ``R > threshold`` and of the background, and
    their mean (RAP, Nam et al., AAAI 2020; thresholds as in :func:`pixel_accuracy`). That the mean
    runs over both classes in each sample first, and then over samples, is inferred. A class that
    neither the map nor the mask has counts 1.

    Args:
        maps: ``(N, H, W)``, floating-point, finite.
        masks: ``(N, H, W)`` bool, or boxes as in :func:`box_masks`.
        threshold: "zero", "mean" (of each map), or a number.

    Returns:
        ``(N,)``, float64, from 0 to 1.

    Raises:
        ArgumentTypeError: maps, masks or threshold have the wrong type.
        ArgumentError: a wrong shape, an empty mask, a box outside of the image, an unknown or
            infinite threshold.
    """
    foreground, inside = _cut(maps, masks, threshold)
    return (_iou(foreground, inside) + _iou(~foreground, ~inside)) / 2


def _cut(maps: Tensor, masks: Masks, threshold: Threshold) -> tuple[Tensor, Tensor]:
    _check_threshold(threshold)
    maps = checked_maps(maps)
    inside = checked_masks(masks, maps)
    if threshold == "mean":
        # Scaled, a constant map is 1 or -1, whose mean is not rounded to below its values.
        maps = scaled(maps)
        return maps > maps.mean((1, 2), keepdim=True), inside
    return maps > (0.0 if threshold == "zero" else float(threshold)), inside


def _iou(first: Tensor, second: Tensor) -> Tensor:
    union = (first | second).sum((1, 2)).double()
    return torch.where(union > 0, (first & second).sum((1, 2)) / union, 1.0)


def _check_threshold(threshold: object) -> None:
    if isinstance(threshold, str):
        check_choice("threshold", threshold, ("zero", "mean"))
    elif isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise ArgumentTypeError(
            f'threshold must be "zero", "mean" or a number, got {type(threshold).__name__}'
        )
    elif not math.isfinite(threshold):
        raise ArgumentError(f"threshold must be finite, got {threshold}")
