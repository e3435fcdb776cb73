"""Pixel accuracy and mean IoU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.metrics import mean_iou, pixel_accuracy
from tests.metric_maps import CHECKED, SCALES, maps_and_masks, mask, tensor

# Foreground above 0: 3, 2, 1; above the mean 1/6: the same; above 1: 3, 2.
SIGNED = tensor([3, -1, 2], [-4, 0, 1])
MASK = mask("##.", "..#")


@pytest.mark.parametrize(
    ("threshold", "accuracy", "foreground", "background"),
    [
        ("zero", 4 / 6, 2 / 4, 2 / 4),
        ("mean", 4 / 6, 2 / 4, 2 / 4),
        (1, 3 / 6, 1 / 4, 2 / 5),
        (-10, 3 / 6, 3 / 6, 0),
        (10.0, 3 / 6, 0, 3 / 6),
    ],
)
def test_by_hand(threshold: Any, accuracy: float, foreground: float, background: float) -> None:
    assert pixel_accuracy(SIGNED, MASK, threshold).tolist() == [pytest.approx(accuracy)]
    expected = pytest.approx((foreground + background) / 2)
    assert mean_iou(SIGNED, MASK, threshold).tolist() == [expected]


def test_the_default_threshold_is_zero() -> None:
    maps = SIGNED.abs()
    assert torch.equal(pixel_accuracy(maps, MASK), pixel_accuracy(maps, MASK, "zero"))
    assert torch.equal(mean_iou(maps, MASK), mean_iou(maps, MASK, "zero"))
    assert not torch.equal(pixel_accuracy(maps, MASK), pixel_accuracy(maps, MASK, "mean"))


def test_the_mean_is_that_of_each_map() -> None:
    maps = torch.cat([SIGNED, SIGNED + 100])
    masks = MASK.expand(2, -1, -1)
    assert pixel_accuracy(maps, masks, "mean").tolist() == [pytest.approx(4 / 6)] * 2


@pytest.mark.parametrize(
    ("value", "threshold"), [(0.0, "zero"), (0.0, "mean"), (1 / 3, "mean"), (-0.7, "zero")]
)
def test_degenerate_maps_have_no_foreground(value: float, threshold: Any) -> None:
    maps = torch.full((1, 3, 7), value, dtype=torch.float64)
    masks = mask("##.....", "##.....", ".......")
    assert pixel_accuracy(maps, masks, threshold).tolist() == [pytest.approx(17 / 21)]
    assert mean_iou(maps, masks, threshold).tolist() == [pytest.approx(17 / 21 / 2)]


def test_a_class_that_nobody_has_counts_as_met() -> None:
    assert mean_iou(SIGNED.abs() + 1, [[0, 0, 3, 2]]).tolist() == [1]


@pytest.mark.parametrize("metric", [pixel_accuracy, mean_iou])
@pytest.mark.parametrize(
    ("threshold", "error", "message"),
    [
        ("median", ArgumentError, 'threshold must be one of "zero", "mean", got \'median\''),
        (math.nan, ArgumentError, "threshold must be finite, got nan"),
        (None, ArgumentTypeError, 'threshold must be "zero", "mean" or a number, got NoneType'),
        (True, ArgumentTypeError, "got bool"),
    ],
)
def test_thresholds_that_are_none(
    metric: Any, threshold: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metric(SIGNED, MASK, threshold)


@CHECKED
@given(maps_and_masks(), SCALES)
def test_scale_does_not_matter(case: tuple[Tensor, Tensor], scale: float) -> None:
    maps, masks = case
    for metric in (pixel_accuracy, mean_iou):
        for threshold in ("zero", "mean"):
            scores = metric(maps, masks, threshold)
            assert torch.equal(metric(maps * scale, masks, threshold), scores)
            assert bool(((scores >= 0) & (scores <= 1)).all())


@CHECKED
@given(maps_and_masks())
def test_the_mask_itself_is_perfect(case: tuple[Tensor, Tensor]) -> None:
    _, masks = case
    ones = torch.ones(len(masks), dtype=torch.float64)
    for metric in (pixel_accuracy, mean_iou):
        for threshold in ("zero", "mean", 0.5):
            assert torch.equal(metric(masks.double(), masks, threshold), ones)
            assert torch.equal(metric(-masks.double() + 1, masks, threshold), 0 * ones)
