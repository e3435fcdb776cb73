"""Outside-inside ratio, region attribution, pointing game."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.metrics import grid_masks, outside_inside_ratio, pointing_game, region_attribution
from tests.metric_maps import CHECKED, SCALES, maps_and_masks, mask, tensor

# Inside: 3, -1; outside: 2, -4, 0, 1.
SIGNED = tensor([3, -1, 2], [-4, 0, 1])
LEFT = mask("##.", "...")


def test_ratio_of_both_signs() -> None:
    # Means of R+: 3/4 outside, 3/2 inside; of R-: 1/2 inside, 4/4 outside.
    expected = (3 / 4 + 1 / 2) / (3 / 2 + 1)
    assert outside_inside_ratio(SIGNED, LEFT).tolist() == [pytest.approx(expected, rel=1e-15)]


def test_ratio_of_positive_relevance() -> None:
    ratio = outside_inside_ratio(SIGNED, LEFT, "positive")
    assert ratio.tolist() == [pytest.approx((3 / 4) / (3 / 2), rel=1e-15)]


@pytest.mark.parametrize("signs", ["both", "positive"])
@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        (tensor([0, 0, 0], [0, 0, 0]), 1.0),
        (tensor([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]), 1.0),
        (tensor([1, 2, 0], [0, 0, 0]), 0.0),
        (tensor([0, 0, 0], [1, 0, 0]), math.inf),
    ],
)
def test_ratio_of_degenerate_maps(signs: Any, maps: Tensor, expected: float) -> None:
    assert outside_inside_ratio(maps, LEFT, signs).tolist() == [pytest.approx(expected, rel=1e-15)]


@pytest.mark.parametrize("signs", ["both", "positive"])
def test_ratio_has_no_value_without_an_outside(signs: Any) -> None:
    for maps in (SIGNED, torch.zeros_like(SIGNED)):
        assert outside_inside_ratio(maps, [[0, 0, 3, 2]], signs).isnan().all()


def test_ratio_of_unknown_signs() -> None:
    with pytest.raises(ArgumentError, match=r"signs must be one of .* got 'negative'"):
        outside_inside_ratio(SIGNED, LEFT, "negative")  # type: ignore[arg-type]


def test_region_attribution_is_the_share_of_positive_relevance() -> None:
    assert region_attribution(SIGNED, LEFT).tolist() == [0.5]


def test_region_attribution_of_degenerate_maps() -> None:
    maps = torch.cat([torch.zeros_like(SIGNED), -SIGNED.abs(), torch.full_like(SIGNED, 0.1)])
    expected = torch.tensor([0, 0, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(region_attribution(maps, LEFT.expand(3, -1, -1)), expected)


def test_region_attribution_of_the_cells_of_a_grid() -> None:
    maps = torch.rand(1, 6, 8).expand(4, -1, -1)
    shares = region_attribution(maps, grid_masks((6, 8)))
    torch.testing.assert_close(shares.sum(), torch.ones((), dtype=torch.float64))
    flat = region_attribution(torch.ones(4, 6, 8), grid_masks((6, 8)))
    assert flat.tolist() == [0.25] * 4


def test_pointing_game_by_hand() -> None:
    maps = torch.zeros(1, 7, 9)
    maps[0, 5, 6] = 2
    # The nearest pixel of the mask, (2, 2), is 3 rows and 4 columns away.
    masks = mask(*["........."] * 2, ".##......", *["........."] * 4)
    assert pointing_game(maps, masks, 5).tolist() == [1]
    assert pointing_game(maps, masks, 4.99).tolist() == [0]
    assert pointing_game(maps, masks, 0).tolist() == [0]
    assert pointing_game(maps, masks).tolist() == [1]
    assert pointing_game(maps, [[6, 5, 7, 6]], 0).tolist() == [1]
    assert pointing_game(-maps - 1, masks, 0).tolist() == [pytest.approx(2 / 62)]


def test_pixels_that_share_the_maximum_share_the_score() -> None:
    assert pointing_game(tensor([3, 3, 0], [3, 0, -1]), LEFT, 0).tolist() == [pytest.approx(2 / 3)]
    assert pointing_game(torch.zeros(1, 2, 3), LEFT, 0).tolist() == [pytest.approx(2 / 6)]
    assert pointing_game(torch.zeros(1, 2, 3), LEFT, 1).tolist() == [pytest.approx(5 / 6)]


@pytest.mark.parametrize(
    ("tolerance", "error", "message"),
    [
        (-1, ArgumentError, "tolerance must be finite and at least 0, got -1"),
        (math.inf, ArgumentError, "tolerance must be finite"),
        (math.nan, ArgumentError, "tolerance must be finite"),
        ("15", ArgumentTypeError, "tolerance must be a number, got str"),
        (True, ArgumentTypeError, "tolerance must be a number, got bool"),
    ],
)
def test_tolerances_that_are_none(tolerance: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pointing_game(SIGNED, LEFT, tolerance)


@CHECKED
@given(maps_and_masks(), SCALES)
def test_scale_does_not_matter(case: tuple[Tensor, Tensor], scale: float) -> None:
    maps, masks = case
    for metric in (
        outside_inside_ratio,
        lambda r, m: outside_inside_ratio(r, m, "positive"),
        region_attribution,
        lambda r, m: pointing_game(r, m, 1),
    ):
        assert torch.equal(metric(maps * scale, masks), metric(maps, masks))


@CHECKED
@given(maps_and_masks())
def test_ranges(case: tuple[Tensor, Tensor]) -> None:
    maps, masks = case
    for signs in ("both", "positive"):
        assert bool((outside_inside_ratio(maps, masks, signs) >= 0).all())
    for values in (region_attribution(maps, masks), pointing_game(maps, masks, 1.5)):
        assert bool(((values >= 0) & (values <= 1)).all())


@CHECKED
@given(maps_and_masks())
def test_ratio_turns_over_with_the_mask_and_with_the_sign(case: tuple[Tensor, Tensor]) -> None:
    maps, masks = case
    ratio = outside_inside_ratio(maps, masks)
    torch.testing.assert_close(outside_inside_ratio(maps, ~masks), 1 / ratio)
    torch.testing.assert_close(outside_inside_ratio(-maps, masks), 1 / ratio)
    positive = maps.abs()
    assert torch.equal(
        outside_inside_ratio(positive, masks), outside_inside_ratio(positive, masks, "positive")
    )


@CHECKED
@given(maps_and_masks(), st.floats(0, 6))
def test_pointing_game_by_distances(case: tuple[Tensor, Tensor], tolerance: float) -> None:
    maps, masks = case
    for relevance, inside, score in zip(
        maps, masks, pointing_game(maps, masks, tolerance), strict=True
    ):
        peaks = (relevance == relevance.max()).nonzero().tolist()
        pixels = inside.nonzero().tolist()
        hits = [any(math.dist(peak, pixel) <= tolerance for pixel in pixels) for peak in peaks]
        assert float(score) == pytest.approx(sum(hits) / len(hits), abs=1e-15)
