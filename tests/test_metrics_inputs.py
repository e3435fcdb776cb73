"""Maps, boxes, masks: what the metrics accept, and what they say of the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rapkernels import metrics
from rapkernels.errors import ArgumentError, ArgumentTypeError
from tests.metric_maps import mask, tensor

WITH_MASKS: list[Callable[..., Tensor]] = [
    metrics.outside_inside_ratio,
    metrics.region_attribution,
    metrics.pointing_game,
    metrics.pixel_accuracy,
    metrics.mean_iou,
]
PAIRS: list[Callable[..., Tensor]] = [
    metrics.map_correlation,
    metrics.rank_correlation,
    metrics.cosine_similarity,
]
MAPS = torch.rand(2, 4, 6, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
BOXES = [[1, 0, 4, 2], [0, 1, 6, 4]]


def test_channels_are_summed_in_float64() -> None:
    relevance = torch.randn(2, 3, 4, 5, dtype=torch.float16, requires_grad=True)
    maps = metrics.to_map(relevance)
    assert maps.dtype == torch.float64
    assert not maps.requires_grad
    torch.testing.assert_close(maps, relevance.detach().double().sum(1), rtol=0, atol=0)


def test_a_map_is_its_own_map() -> None:
    maps = torch.randn(2, 4, 5)
    torch.testing.assert_close(metrics.to_map(maps), maps.double(), rtol=0, atol=0)


def test_a_box_of_whole_numbers_ends_before_its_second_corner() -> None:
    expected = torch.cat(
        [mask(".###..", ".###..", "......", "......"), mask("......", "######", "######", "######")]
    )
    assert torch.equal(metrics.box_masks(BOXES, (4, 6)), expected)
    assert torch.equal(metrics.box_masks(torch.tensor(BOXES), [4, 6]), expected)
    assert bool(metrics.box_masks([[0, 0, 6, 4]], (4, 6)).all())


def test_a_pixel_is_in_a_box_where_its_centre_is() -> None:
    expected = mask("......", "..##..", "......", "......")
    assert torch.equal(metrics.box_masks([[1.6, 1.5, 4.5, 2.5]], (4, 6)), expected)


def test_the_cells_of_a_grid_cover_the_image_once() -> None:
    cells = metrics.grid_masks((4, 6))
    assert torch.equal(cells[:1], mask("###...", "###...", "......", "......"))
    assert torch.equal(cells[1:2], mask("...###", "...###", "......", "......"))
    assert torch.equal(cells[2:3], mask("......", "......", "###...", "###..."))
    assert torch.equal(cells[3:], mask("......", "......", "...###", "...###"))
    assert torch.equal(metrics.grid_masks((5, 3)).sum(0), torch.ones(5, 3, dtype=torch.int64))


@pytest.mark.parametrize("metric", WITH_MASKS)
def test_boxes_stand_for_their_masks(metric: Callable[..., Tensor]) -> None:
    maps = MAPS.to(torch.get_default_device())
    masks = metrics.box_masks(BOXES, (4, 6))
    for given in (BOXES, torch.tensor(BOXES), torch.tensor(BOXES, dtype=torch.float32)):
        assert torch.equal(metric(maps, given), metric(maps, masks))


@pytest.mark.parametrize("metric", [*WITH_MASKS, metrics.gini])
def test_samples_stay_apart(metric: Callable[..., Tensor]) -> None:
    maps = MAPS.to(torch.get_default_device())
    more = [BOXES] if metric in WITH_MASKS else []
    together = metric(maps, *more)
    assert together.shape == (2,)
    assert together.dtype == torch.float64
    for sample in range(2):
        part = slice(sample, sample + 1)
        assert torch.equal(metric(maps[part], *(boxes[part] for boxes in more)), together[part])


@pytest.mark.parametrize("metric", [*WITH_MASKS, metrics.gini, *PAIRS])
def test_no_samples_give_no_values(metric: Callable[..., Tensor]) -> None:
    maps = torch.zeros(0, 3, 4)
    if metric in WITH_MASKS:
        assert metric(maps, torch.zeros(0, 3, 4, dtype=torch.bool)).shape == (0,)
        assert metric(maps, []).shape == (0,)
    else:
        assert metric(*[maps] * (2 if metric in PAIRS else 1)).shape == (0,)


@pytest.mark.parametrize("metric", [*WITH_MASKS, metrics.gini, *PAIRS])
@pytest.mark.parametrize(
    ("maps", "error", "message"),
    [
        ([[1.0]], ArgumentTypeError, r"maps\w* must be a torch.Tensor, got list"),
        (
            torch.ones(1, 2, 2, dtype=torch.int64),
            ArgumentTypeError,
            r"maps\w* must have a floating-point dtype, got int64",
        ),
        (
            torch.ones(1, 3, 2, 2),
            ArgumentError,
            r"maps\w* must have shape \(N, H, W\) .* got shape \[1, 3, 2, 2\]: sum the channels",
        ),
        (torch.ones(1, 0, 2), ArgumentError, r"got shape \[1, 0, 2\]"),
        (
            torch.tensor([[[1.0, torch.nan], [torch.inf, 0.0]]]),
            ArgumentError,
            r"maps\w* must be finite, got 2 NaN or infinite entries of 4",
        ),
    ],
)
def test_maps_that_are_none(
    metric: Callable[..., Tensor], maps: Any, error: type[Exception], message: str
) -> None:
    more = {True: [[[0, 0, 1, 1]]], False: [maps] if metric in PAIRS else []}
    with pytest.raises(error, match=message):
        metric(maps, *more[metric in WITH_MASKS])


@pytest.mark.parametrize("metric", WITH_MASKS)
@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (
            torch.ones(2, 4, 5, dtype=torch.bool),
            ArgumentError,
            r"masks must have the shape of the maps, \[2, 4, 6\], got shape \[2, 4, 5\]",
        ),
        (
            torch.ones(4, 6, dtype=torch.bool),
            ArgumentError,
            r"masks must have the shape of the maps, \[2, 4, 6\], got shape \[4, 6\]",
        ),
        (
            torch.ones(2, 4, 6, dtype=torch.uint8),
            ArgumentTypeError,
            r"masks must be a bool tensor .* got dtype uint8: convert it with masks.bool\(\)",
        ),
        (
            torch.cat([mask("######", *["......"] * 3), mask(*["......"] * 4)]),
            ArgumentError,
            "masks must hold at least one pixel each, got an empty mask for sample 1",
        ),
        (BOXES[:1], ArgumentError, "boxes must be one per sample, 2, got 1"),
        ([[0, 0, 6, 4], [0, 0, 7, 4]], ArgumentError, r"x1 <= 6 .* got \[0.0, 0.0, 7.0, 4.0\] for"),
        ([[0, 0, 6, 4], [0, 0, 6, 5]], ArgumentError, "y1 <= 4, got .* for sample 1"),
        ([[-1, 0, 6, 4], [0, 0, 6, 4]], ArgumentError, "0 <= x0 .* for sample 0"),
        ([[0, -1, 6, 4], [0, 0, 6, 4]], ArgumentError, "0 <= y0 .* for sample 0"),
        ([[3, 0, 3, 4], [0, 0, 6, 4]], ArgumentError, "x0 < x1 .* for sample 0"),
        ([[0, 2, 6, 1], [0, 0, 6, 4]], ArgumentError, "y0 < y1 .* for sample 0"),
        ([[0, 0, torch.nan, 4], [0, 0, 6, 4]], ArgumentError, "boxes must be .* for sample 0"),
        (
            [[0.6, 0.6, 1.4, 1.4], [0, 0, 6, 4]],
            ArgumentError,
            "boxes must hold the centre of at least one pixel, got .* for sample 0",
        ),
        ([0, 0, 6, 4], ArgumentError, r"boxes must be one \[x0, y0, x1, y1\] .* got shape \[4\]"),
        ([[0, 0, 6], [0, 0, 6]], ArgumentError, r"boxes must be .* got shape \[2, 3\]"),
        ([[0, 0, 6, 4], [0, 0, 6]], ArgumentTypeError, "boxes must be one"),
        ([["a", 0, 6, 4], [0, 0, 6, 4]], ArgumentTypeError, "boxes must be one"),
        (None, ArgumentTypeError, "boxes must be .* got NoneType"),
        (torch.ones(2, 4, dtype=torch.complex64), ArgumentTypeError, "got dtype torch.complex64"),
    ],
)
def test_masks_that_are_none(
    metric: Callable[..., Tensor], masks: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metric(MAPS.to(torch.get_default_device()), masks)


@pytest.mark.parametrize("metric", PAIRS)
def test_pairs_of_maps_of_two_shapes(metric: Callable[..., Tensor]) -> None:
    with pytest.raises(
        ArgumentError,
        match=r"maps_b must have the shape of maps_a, \[1, 1, 2\], got shape \[1, 2, 1\]",
    ):
        metric(tensor([1, 2]), tensor([1], [2]))


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        ((4, 1), ArgumentError, r"size must be at least 2 in H and W, got \(4, 1\)"),
        ((4,), ArgumentTypeError, r"size must be two ints \(H, W\), got \(4,\)"),
        ((4, 6.0), ArgumentTypeError, "size must be two ints"),
        (4, ArgumentTypeError, "size must be two ints"),
    ],
)
def test_sizes_that_are_none(size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        metrics.grid_masks(size)


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 3, 4, 5)])
def test_a_relevance_of_another_number_of_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"relevance must have shape \(N, C, H, W\) or \(N, H"):
        metrics.to_map(torch.zeros(shape))
