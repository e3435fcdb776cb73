"""Correlations, cosine, Gini index."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from rapkernels.metrics import cosine_similarity, gini, map_correlation, rank_correlation
from tests.metric_maps import CHECKED, SCALES, maps_and_masks, tensor

ALL = [map_correlation, rank_correlation, cosine_similarity]
A, B = tensor([1, 2], [3, 6]), tensor([2, 2], [1, 7])


def test_pearson_by_hand() -> None:
    # Centred: -2, -1, 0, 3 and -1, -1, -2, 4.
    expected = 15 / math.sqrt(14 * 22)
    assert map_correlation(A, B).tolist() == [pytest.approx(expected, rel=1e-14)]


def test_spearman_by_hand() -> None:
    # Ranks less their mean: -1.5, -0.5, 0.5, 1.5 and, 2 and 2 sharing theirs, 0, 0, -1.5, 1.5.
    expected = (-0.75 + 2.25) / math.sqrt(5 * 4.5)
    assert rank_correlation(A, B).tolist() == [pytest.approx(expected, rel=1e-14)]


def test_cosine_by_hand() -> None:
    expected = (2 + 4 + 3 + 42) / math.sqrt(50 * 58)
    assert cosine_similarity(A, B).tolist() == [pytest.approx(expected, rel=1e-14)]


@pytest.mark.parametrize("metric", [map_correlation, rank_correlation])
def test_a_constant_map_correlates_with_nothing(metric: Callable[..., Tensor]) -> None:
    flat = torch.full((1, 3, 7), 0.1, dtype=torch.float64)
    other = torch.rand(1, 3, 7)
    assert metric(flat, other).tolist() == [0]
    assert metric(other, flat).tolist() == [0]
    assert metric(flat, 0 * flat).tolist() == [0]


def test_a_map_of_zeros_has_no_direction() -> None:
    assert cosine_similarity(0 * A, B).tolist() == [0]
    assert cosine_similarity(0 * A, 0 * B).tolist() == [0]


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_squares_neither_overflow_nor_vanish(metric: Callable[..., Tensor], scale: float) -> None:
    torch.testing.assert_close(metric(A * scale, B), metric(A, B), rtol=1e-12, atol=0)


def test_pearson_equals_numpy() -> None:
    a, b = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    expected = [
        np.corrcoef(first.cpu().flatten(), second.cpu().flatten())[0, 1]
        for first, second in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(map_correlation(a, b).cpu(), expected, rtol=0, atol=1e-14)


@CHECKED
@given(maps_and_masks(), maps_and_masks(), SCALES)
def test_similarities(
    case: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], scale: float
) -> None:
    a = case[0]
    b = torch.where(case[1], a, a.flip(2) * other[0].flatten()[0])
    for metric in ALL:
        values = metric(a, b)
        assert bool(((values >= -1) & (values <= 1)).all())
        assert torch.equal(metric(a * scale, b), values)
        assert torch.equal(metric(b, a), values)
        torch.testing.assert_close(metric(-a, b), -values, rtol=0, atol=1e-14)
        same = metric(a, a)
        assert bool(((same == 0) | ((same - 1).abs() < 1e-14)).all())
    shifted = rank_correlation(a.exp(), b)
    torch.testing.assert_close(shifted, rank_correlation(a, b), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        (tensor([0, 0], [0, 0]), 0.0),
        (tensor([0.1, -0.1, 0.1]), 0.0),
        (tensor([0, 0], [-3, 0]), 0.75),
        # Sorted: 1, 2, 3, 4 with the weights -3, -1, 1, 3.
        (tensor([4, -1], [-2, 3]), 10 / 40),
    ],
)
def test_gini_by_hand(maps: Tensor, expected: float) -> None:
    assert gini(maps).tolist() == [pytest.approx(expected, abs=1e-15)]


@CHECKED
@given(maps_and_masks(), SCALES)
def test_gini_range_and_invariance(case: tuple[Tensor, Tensor], scale: float) -> None:
    maps = case[0]
    values = gini(maps)
    pixels = maps[0].numel()
    assert bool(((values >= 0) & (values <= 1 - 1 / pixels + 1e-15)).all())
    for same in (maps * scale, -maps, maps.flip(1, 2)):
        assert torch.equal(gini(same), values)
