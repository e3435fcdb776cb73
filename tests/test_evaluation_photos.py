"""Folders of photos and files of boxes: what is read, where a box ends up, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rapkernels.evaluation import EvaluationError, PhotoCases, read_boxes
from rapkernels.evaluation.cases import box_mask, mask_bounds
from rapkernels.images import ImageError, Preprocessing
from rapkernels.metrics import box_masks

pytestmark = pytest.mark.cpu_only

HALF = (0.5, 0.5, 0.5)
WHOLE = Preprocessing((32, 32), 32, HALF, HALF)
CROP = Preprocessing((32, 32), 64, HALF, HALF)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos of 64 x 64, dark but for a white square at x 16 to 32, y 32 to 48."""
    for name in ("one.png", "two.jpg"):
        pixels = np.zeros((64, 64, 3), dtype=np.uint8)
        pixels[32:48, 16:32] = 255
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "inner.png").mkdir()
    return tmp_path


def write_boxes(folder: Path, boxes: Any, **others: Any) -> Path:
    path = folder / "boxes.json"
    path.write_text(json.dumps({"boxes": boxes, **others}))
    return path


def cases(folder: Path, boxes: Any, preprocessing: Preprocessing = WHOLE, **others: Any) -> Any:
    return PhotoCases(folder, preprocessing, read_boxes(write_boxes(folder, boxes, **others)))


BOX = {"box": [16, 32, 32, 48], "imagenet": 7, "object": "a square"}


def test_without_boxes_all_photos_are_there(folder: Path) -> None:
    found = PhotoCases(folder, WHOLE)
    assert [case.name for case in found] == ["one.png", "two.jpg"]
    assert all(case.mask is None and case.target is None for case in found)
    assert found[0].pixels.shape == (3, 32, 32)
    assert [case.name for case in found[1:]] == ["two.jpg"]


@pytest.mark.parametrize("preprocessing", [WHOLE, CROP, WHOLE.stretched()])
def test_the_mask_lies_where_the_network_sees_the_object(
    folder: Path, preprocessing: Preprocessing
) -> None:
    (case,) = cases(folder, {"one": BOX}, preprocessing, size=[64, 64])
    bright = case.pixels[0] > 0
    assert bright.any()
    assert torch.equal(case.mask, bright)
    assert (case.target, case.classes) == (7, (7,))


def test_a_photo_that_is_not_square_is_cropped_with_its_box(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[10:30, 50:70] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (case,) = cases(tmp_path, {"wide": {"box": [50, 10, 70, 30]}})
    # To 64 x 32, of which columns 16 to 48 are left.
    assert mask_bounds(case.mask) == (24, 8, 32, 24)
    inside = case.pixels[0][case.mask].mean()
    assert inside > 0.9
    assert case.pixels[0][~case.mask].mean() < -0.9
    assert case.target is None


def test_photos_without_a_box_are_left_out(folder: Path) -> None:
    found = cases(folder, {"two.jpg": BOX})
    assert [case.name for case in found] == ["two.jpg"]
    assert found.left_out == ("one.png",)


@pytest.mark.parametrize(
    ("boxes", "others", "message"),
    [
        ({"three": BOX}, {}, r"three: no image has this name in "),
        ({"one": BOX, "one.png": BOX}, {}, r"one\.png: one\.png has two boxes\.$"),
        ({"one": {"box": [0, 0, 65, 10]}}, {"size": [64, 64]}, r"one: the box must lie in the ph"),
        (
            {"one": {"box": [0, 0, 65, 10]}},
            {},
            r"one\.png: the box must lie in the photo of 64 x",
        ),
        ({"one": {"box": [-1, 0, 5, 10]}}, {}, r"64 x 64 pixels, got \[-1, 0, 5, 10\]\.$"),
        (
            {"one": {"box": [5, 0, 5, 10]}},
            {},
            r"have x0 < x1 and y0 < y1, got \[5, 0, 5, 10\]\.$",
        ),
        ({"one": {"box": [0, 0, 5]}}, {}, r'one: "box" must be four numbers'),
        ({"one": {"box": [0, 0, 5, "9"]}}, {}, r'one: "box" must be four numbers'),
        ({"one": {"box": [0, 0, 5, float("nan")]}}, {}, r'one: "box" must be four numbers'),
        ({"one": [0, 0, 5, 5]}, {}, r'one: "box" must be four numbers'),
        ({"one": {**BOX, "imagenet": "dog"}}, {}, r'"imagenet" must be the index of a class, got'),
        ({"one": {**BOX, "imagenet": -1}}, {}, r'"imagenet" must be the index of a class, got -1'),
        ({"one": BOX}, {"size": [224, 224]}, r"for photos of 224 x 224 pixels, got 64 x 64\.$"),
        ({"one": BOX}, {"size": 64}, r'"size" must be \[width, height\] in pixels, got 64\.$'),
        ({}, {}, r'an object "boxes" from the names of photos to their boxes is needed\.$'),
        ([BOX], {}, r'an object "boxes" from the names of photos'),
    ],
)
def test_boxes_that_are_refused(
    folder: Path, boxes: Any, others: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message) as raised:
        cases(folder, boxes, **others)
    assert "boxes.json" in str(raised.value)


def test_a_box_that_is_cropped_away_is_refused(folder: Path) -> None:
    with pytest.raises(EvaluationError, match=r"one\.png: the network sees nothing of the box"):
        cases(folder, {"one": {"box": [0, 0, 16, 16]}}, CROP)


def test_a_name_of_two_photos_needs_its_suffix(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "one.bmp")
    with pytest.raises(EvaluationError, match="one: 2 images have this name"):
        cases(folder, {"one": BOX})
    assert [case.name for case in cases(folder, {"one.png": BOX})] == ["one.png"]


def test_files_of_boxes_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none\.json: no such file of boxes\.$"):
        read_boxes(tmp_path / "none.json")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_boxes(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"bad\.json: not a JSON file \("):
        read_boxes(tmp_path / "bad.json")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nowhere: no such folder"):
        PhotoCases(tmp_path / "nowhere", WHOLE)
    with pytest.raises(EvaluationError, match=f"{re.escape(str(tmp_path))}: no images in this fol"):
        PhotoCases(tmp_path, WHOLE)


def test_a_damaged_photo_is_found_before_the_run(folder: Path) -> None:
    (folder / "one.png").write_text("no photo")
    with pytest.raises(ImageError, match=r"one\.png: not an image"):
        cases(folder, {"one": BOX})


@pytest.mark.parametrize("box", [(1, 2, 5, 8), (0.5, 0.5, 3.4, 3.6), (0.6, 0, 9, 6)])
def test_a_mask_is_that_of_the_metrics(box: tuple[float, float, float, float]) -> None:
    assert torch.equal(box_mask(box, (8, 9)), box_masks([list(box)], (8, 9))[0])


def test_a_mask_of_a_box_that_reaches_out() -> None:
    assert mask_bounds(box_mask((-4, 3, 2, 20), (8, 9))) == (0, 3, 2, 8)
    assert not box_mask((20, 0, 30, 5), (8, 9)).any()
