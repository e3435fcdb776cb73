"""The controls: what they look like, and where they win and lose."""

from __future__ import annotations

import pytest
import torch

from rapkernels.errors import ArgumentError
from rapkernels.evaluation import CentredDisc, CentredGaussian, RandomMaps
from rapkernels.metrics import box_masks, map_correlation, pointing_game, region_attribution

pytestmark = pytest.mark.cpu_only

X = torch.zeros(2, 3, 40, 60)
TARGETS = torch.tensor([1, 2])


def test_a_disc_has_the_area_of_its_radius() -> None:
    disc = CentredDisc(radius=0.25)(torch.zeros(1, 3, 200, 300), TARGETS[:1])[0]
    inside = disc > 0
    # A disc of 50 pixels; its rim is cut into pixels.
    assert int(inside.sum()) == pytest.approx(3.14159 * 50**2, rel=0.01)
    assert 0.999 <= float(disc[inside].min()) <= float(disc.max()) <= 1.0
    assert torch.equal(disc, disc.flip(0))
    assert torch.equal(disc, disc.flip(1))


def test_the_largest_values_are_in_the_middle() -> None:
    for control in (CentredDisc(), CentredGaussian()):
        maps = control(X, TARGETS)
        assert maps.shape == (2, 40, 60)
        peak = (maps[0] == maps[0].max()).nonzero().tolist()
        assert peak == [[19, 29], [19, 30], [20, 29], [20, 30]]


def test_a_gaussian_falls_by_its_sigma() -> None:
    bell = CentredGaussian(sigma=0.25)(torch.zeros(1, 3, 41, 41), TARGETS[:1])[0]
    distance = 10 / (0.25 * 41)
    assert float(bell[20, 20]) == 1.0
    assert float(bell[20, 30]) == pytest.approx(torch.exp(torch.tensor(-0.5 * distance**2)).item())


def test_a_disc_finds_centred_boxes_and_misses_the_others() -> None:
    maps = CentredDisc()(X, TARGETS)
    masks = box_masks([[18, 8, 42, 32], [0, 0, 12, 12]], (40, 60))
    assert region_attribution(maps, masks).tolist() == [pytest.approx(1.0), 0.0]
    assert pointing_game(maps, masks, tolerance=2).tolist() == [1.0, 0.0]


def test_random_maps_are_functions_of_image_class_and_seed() -> None:
    x = torch.rand(3, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 2, 3])
    maps = RandomMaps(seed=5)(x, targets)
    assert 0 <= float(maps.min()) < 0.01 < 0.99 < float(maps.max()) < 1
    assert torch.equal(RandomMaps(seed=5)(x[1:], targets[1:]), maps[1:])
    other_seed, other_class = RandomMaps(seed=6)(x, targets), RandomMaps(seed=5)(x, targets + 1)
    other_image = RandomMaps(seed=5)(x + 1, targets)
    for other in (other_seed, other_class, other_image):
        # 2400 independent pixels: the correlation's standard deviation is 0.02.
        assert map_correlation(maps, other).abs().max() < 0.1


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_sizes_must_be_positive(size: float) -> None:
    with pytest.raises(ArgumentError, match="radius must be positive, got"):
        CentredDisc(size)
    with pytest.raises(ArgumentError, match="sigma must be positive, got"):
        CentredGaussian(size)
