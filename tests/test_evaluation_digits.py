"""Digits on textures: the pictures, and the network that reads them."""

from __future__ import annotations

import pytest
import torch

from bench.digits import LARGEST, SIDE, SMALLEST, make_digits, make_grids
from rapkernels.evaluation import choose_columns, choose_methods, evaluate
from rapkernels.evaluation.cases import mask_bounds
from rapkernels.metrics import grid_masks
from tests.trained_digits import trained_digits

pytestmark = pytest.mark.cpu_only


def test_pictures_follow_their_seed() -> None:
    first, again, other = (make_digits(20, seed) for seed in (1, 1, 2))
    assert first.pixels.shape == (20, 3, SIDE, SIDE)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.pixels, other.pixels)
    assert not torch.equal(first.pixels, make_digits(20, 1, held_out=True).pixels)


def test_digits_lie_anywhere_in_several_sizes() -> None:
    pictures = make_digits(300, seed=0)
    bounds = torch.tensor([mask_bounds(mask) for mask in pictures.boxes[:, 0]])
    sizes = bounds[:, 2] - bounds[:, 0]
    assert torch.equal(sizes, bounds[:, 3] - bounds[:, 1])
    assert (int(sizes.min()), int(sizes.max())) == (SMALLEST, LARGEST)
    centres = (bounds[:, :2] + bounds[:, 2:]) / 2
    # Uniform over the positions that leave the digit in the picture: centred on the average.
    assert centres.mean(0).tolist() == pytest.approx([SIDE / 2, SIDE / 2], abs=3)
    assert centres.std(0).min() > 9
    assert sorted(pictures.labels.unique().tolist()) == list(range(10))


def test_the_ink_is_where_the_picture_differs_from_its_texture() -> None:
    pictures = make_digits(50, seed=0)
    assert not (pictures.ink & ~pictures.boxes).any()
    for pixels, box, ink in zip(pictures.pixels, pictures.boxes, pictures.ink, strict=True):
        brightness = pixels.mean(0)
        contrast = (brightness[ink[0]].mean() - brightness[~box[0]].mean()).abs()
        assert contrast > 0.25
        assert 0.1 < ink.sum() / box.sum() < 0.8


def test_a_grid_has_four_different_digits_one_in_each_quarter() -> None:
    grids = make_grids(100, seed=0)
    cells = grid_masks((SIDE, SIDE))
    assert all(len(set(labels)) == 4 for labels in grids.labels.tolist())
    assert not (grids.boxes & ~cells).any()
    cases = grids.cases("cells")
    assert [case.target for case in cases[:5]] == [
        int(grids.labels[index, index % 4]) for index in range(5)
    ]
    assert torch.equal(cases[6].mask, cells[2])
    assert torch.equal(grids.cases("boxes")[6].mask, grids.boxes[6, 2])
    assert torch.equal(grids.cases("ink")[6].mask, grids.ink[6, 2])
    assert cases[6].classes == tuple(grids.labels[6].tolist())


@pytest.mark.slow
def test_the_network_reads_digits_it_has_not_seen() -> None:
    trained = trained_digits()
    assert trained.accuracy > 0.95
    assert not trained.network.training


@pytest.mark.slow
def test_relevance_finds_digits_where_controls_do_not() -> None:
    cases = make_digits(60, seed=2, held_out=True).cases()
    columns = choose_columns(["region_attribution", "pointing_game"], masks=True)
    methods = choose_methods(["rap", "input_x_gradient"], controls=True)
    table = evaluate(trained_digits().network, cases, methods, columns, batch_size=20)
    cells = {row.name: row.cells for row in table.rows}
    controls = max(
        cells[name]["region_attribution"].mean for name in ("disc", "gaussian", "random")
    )
    for name in ("rap", "input_x_gradient"):
        assert cells[name]["region_attribution"].mean > 1.5 * controls, name
        assert cells[name]["pointing_game"].mean > 0.8, name


@pytest.mark.slow
def test_competing_classes_raise_the_region_attribution_of_grids() -> None:
    """The claim of class distributions (VAR), on 100 grids of four digits."""
    cases = make_grids(100, seed=3).cases("cells")
    columns = choose_columns(["region_attribution"], masks=True)
    methods = choose_methods(["rap", "class_distribution", "lrp", "class_distribution_lrp"], False)
    table = evaluate(trained_digits().network, cases, methods, columns, batch_size=50)
    shares = {row.name: row.cells["region_attribution"].mean for row in table.rows}
    assert len(cases) == 100
    for base in ("", "_lrp"):
        competing, alone = shares[f"class_distribution{base}"], shares[base[1:] or "rap"]
        # Two standard errors of a mean over 100 grids, whose shares spread by about 0.25.
        assert competing > alone + 0.05, shares
