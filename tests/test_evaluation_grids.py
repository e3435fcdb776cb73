"""2x2 grids and small objects: what is where, and that the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rapkernels.errors import ArgumentError
from rapkernels.evaluation import Case, CentredDisc, EvaluationError, GridCases, SmallObjectCases
from rapkernels.evaluation.cases import mask_bounds
from rapkernels.evaluation.grids import tile
from rapkernels.evaluation.small import CLEARANCE, off_centre_position
from rapkernels.metrics import grid_masks, region_attribution

pytestmark = pytest.mark.cpu_only


def flat(target: int | None, level: float, side: int = 16) -> Case:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[4:12, 6:10] = True
    return Case(f"image {level}", torch.full((3, side, side), level), target, mask)


IMAGES = [flat(index // 2, float(index)) for index in range(12)]


def test_each_cell_holds_one_image_of_the_class_it_is_said_to_have() -> None:
    masks = grid_masks((16, 16))
    for place, case in enumerate(GridCases(IMAGES, 20, seed=1)):
        levels = [case.pixels[0][mask].round().unique().item() for mask in masks]
        assert [int(level) // 2 for level in levels] == list(case.classes)
        assert len(set(case.classes)) == 4
        assert case.target == case.classes[place % 4]
        assert torch.equal(case.mask, masks[place % 4])


def test_grids_follow_their_seed_and_never_repeat() -> None:
    names = [case.name for case in GridCases(IMAGES, 100, seed=3)]
    assert len(set(names)) == 100
    assert [case.name for case in GridCases(IMAGES, 100, seed=3)] == names
    assert [case.name for case in GridCases(IMAGES, 100, seed=4)] != names
    assert GridCases(IMAGES, 100, seed=3)[7].name == names[7]
    assert [case.name for case in GridCases(IMAGES, 100, seed=3)[5:7]] == names[5:7]


def test_shrinking_keeps_the_mean() -> None:
    images = list(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    cell = tile(images)[:, 16:, :16]
    assert cell.shape == (3, 16, 16)
    # Bilinear weights at the border are cut off: the mean is not kept to the last digit.
    assert float(cell.mean()) == pytest.approx(float(images[2].mean()), abs=0.01)


def test_odd_sides() -> None:
    grid = GridCases([flat(index, float(index), side=17) for index in range(4)], 1)[0]
    assert grid.pixels.shape == (3, 17, 17)
    for mask, label in zip(grid_masks((17, 17)), grid.classes, strict=True):
        # Float32 weights that sum to 1 but for rounding.
        assert grid.pixels[0][mask].round(decimals=5).unique().tolist() == [float(label)]


def test_grids_that_cannot_be_made() -> None:
    with pytest.raises(EvaluationError, match="at least 4 classes, got 3"):
        GridCases(IMAGES[:6], 1)
    with pytest.raises(EvaluationError, match="25 different grids cannot be made"):
        GridCases(IMAGES[::3], 25)
    assert len(GridCases(IMAGES[::3], 24)) == 24
    with pytest.raises(EvaluationError, match=r"a class for each image, got none: image 9\.0"):
        GridCases([*IMAGES, flat(None, 9.0)], 1)


@pytest.mark.parametrize("background", ["texture", "blur"])
def test_a_small_object_is_its_box_away_from_the_middle(background: str) -> None:
    image = torch.full((3, 64, 64), -1.0)
    image[:, 16:48, 24:40] = 1.0
    mask = image[0] > 0
    source = Case("square", image, 3, mask, (3,))
    kept = image.clone()
    cases = SmallObjectCases([source], per_case=20, seed=2, share=0.25, background=background)
    places = set()
    for case in cases:
        left, top, right, bottom = mask_bounds(case.mask)
        # The box is twice as high as wide; its height becomes a quarter of 64.
        assert (bottom - top, right - left) == (16, 8)
        assert torch.equal(case.pixels[:, case.mask], torch.ones(3, 128))
        centre = np.hypot((top + bottom) / 2 - 32, (left + right) / 2 - 32)
        assert centre >= CLEARANCE * 64
        assert (case.target, case.classes) == (3, (3,))
        assert float(case.pixels.min()) >= -1.0
        places.add((top, left))
    assert len(places) > 10
    assert torch.equal(image, kept)


def test_small_objects_follow_their_seed() -> None:
    cases = SmallObjectCases(IMAGES, per_case=2, seed=1)
    again, other = SmallObjectCases(IMAGES, 2, seed=1), SmallObjectCases(IMAGES, 2, seed=2)
    assert len(cases) == 24
    assert torch.equal(cases[5].pixels, again[5].pixels)
    assert cases[5].name == "small image 2.0"
    assert any(not torch.equal(cases[n].mask, other[n].mask) for n in range(24))
    assert [case.name for case in cases[4:6]] == ["small image 2.0"] * 2


def test_a_centred_disc_misses_small_objects() -> None:
    cases = list(SmallObjectCases([flat(1, 1.0, side=64)], per_case=50, share=0.35))
    x = torch.stack([case.pixels for case in cases])
    masks = torch.stack([case.mask for case in cases])
    maps = CentredDisc()(x, torch.ones(len(cases), dtype=torch.int64))
    assert region_attribution(maps, masks).mean() < 0.1


def test_small_objects_that_are_refused() -> None:
    with pytest.raises(ArgumentError, match="share must be between 0 and 1, got 1"):
        SmallObjectCases(IMAGES, share=1)
    with pytest.raises(ArgumentError, match="background must be one of texture, blur, got 'sky'"):
        SmallObjectCases(IMAGES, background="sky")  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    with pytest.raises(EvaluationError, match="no place off the centre"):
        off_centre_position((64, 64), (50, 50), generator)
    with pytest.raises(EvaluationError, match="does not fit"):
        off_centre_position((64, 64), (65, 5), generator)
