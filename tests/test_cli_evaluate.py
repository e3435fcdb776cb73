"""``rapkernels evaluate``, as a user meets it: what it prints, writes, and refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image

from bench.evaluate import main as evaluate_digits
from rapkernels.cli.app import app

pytestmark = pytest.mark.cpu_only

QUICK = ["--metrics", "region_attribution,pointing_game,class_correlation"]
ROWS = ["rap", "disc", "gaussian", "random"]


@pytest.fixture(autouse=True)
def _photos_with_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five photos of noise, each with a bright square in another place, and their boxes."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    generator = np.random.default_rng(0)
    boxes: dict[str, Any] = {}
    for index in range(5):
        pixels = generator.integers(0, 120, (64, 64, 3), dtype=np.uint8)
        left = 8 * index
        pixels[20:44, left : left + 24] = 250
        Image.fromarray(pixels).save(f"photos/p{index}.png")
        boxes[f"p{index}"] = {"box": [left, 20, left + 24, 44], "imagenet": index}
    Path("boxes.json").write_text(json.dumps({"size": [64, 64], "boxes": boxes}))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a small torchvision network with 7 classes, and of RAP alone."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), path)
    network = ["--model", "torchvision:squeezenet1_1", "--weights", str(path)]
    return [*network, "--methods", "rap", "-o", "out"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *arguments])


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def assert_fails(result: Result, message: str, code: int = 1) -> None:
    assert result.exit_code == code
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output


def test_a_table_of_photos(small: list[str]) -> None:
    result = run("photos", "--boxes", "boxes.json", *QUICK, *small)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "torchvision:squeezenet1_1 on the photos of photos: 5 images" in result.stdout
    assert "The network's first choice is a class that is said to be there for " in result.stdout
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "photos.csv",
        "photos.png",
        "photos.txt",
    ]
    found = rows("out/photos.csv")
    assert [row["method"] for row in found] == ROWS
    assert [row["control"] for row in found] == ["0", "1", "1", "1"]
    assert all(row["images"] == "5" for row in found)
    # Photos are enlarged four times, and lose 16 pixels at each side; so does the first box.
    areas = [96 * 80, *[96 * 96] * 4]
    # Random maps know nothing of the box.
    chance = sum(areas) / 5 / 224**2
    assert float(found[3]["region_attribution"]) == pytest.approx(chance, rel=0.01)
    assert float(found[1]["class_correlation"]) == pytest.approx(1.0)
    assert float(found[0]["seconds"]) > 0
    text = Path("out/photos.txt").read_text(encoding="utf-8")
    assert text in result.stdout
    assert [line.split("  ")[0] for line in text.splitlines()[4:8]] == [
        "RAP",
        "centred disc",
        "centred Gaussian",
        "random",
    ]


def test_without_boxes_the_metrics_that_need_none(small: list[str]) -> None:
    result = run("photos", *small, "--metrics", "gini,class_correlation")
    assert result.exit_code == 0, result.output
    assert "The predicted class is explained for 5." in result.stdout
    assert_fails(run("photos", *QUICK, *small), "Error: the metric region_attribution needs boxes")


def test_grids_and_small_objects(small: list[str]) -> None:
    kinds = ["--images", "grids,small", "--count", "8", "--seed", "3"]
    result = run("photos", "--boxes", "boxes.json", *kinds, *QUICK, *small)
    assert result.exit_code == 0, result.output
    assert [row["images"] for row in rows("out/grids.csv")] == ["8"] * 4
    # Two of each photo, so that there are eight at least.
    assert [row["images"] for row in rows("out/small.csv")] == ["10"] * 4
    disc, random = rows("out/grids.csv")[1::2]
    # A centred disc has a quarter of itself in each cell.
    assert float(disc["region_attribution"]) == pytest.approx(0.25)
    assert float(random["region_attribution"]) == pytest.approx(0.25, abs=0.01)
    assert float(rows("out/small.csv")[1]["region_attribution"]) < 0.25


def test_the_same_command_gives_the_same_table(small: list[str]) -> None:
    tables = []
    for _ in range(2):
        result = run(
            "photos", "--boxes", "boxes.json", "--images", "grids", "--count", "4", *QUICK, *small
        )
        assert result.exit_code == 0, result.output
        tables.append(
            [{k: v for k, v in row.items() if k != "seconds"} for row in rows("out/grids.csv")]
        )
    assert tables[0] == tables[1]


def test_photos_without_a_box_are_told(small: list[str]) -> None:
    Image.new("RGB", (64, 64)).save("photos/extra.png")
    result = run("photos", "--boxes", "boxes.json", "--metrics", "gini", *small)
    assert result.exit_code == 0, result.output
    assert result.stderr == ("Warning: 1 of 6 photos have no box and are left out: extra.png\n")
    assert "5 images" in result.stdout


def test_failures_are_one_sentence(small: list[str]) -> None:
    assert_fails(run("none", *small), "^Error: none: no such folder")
    assert_fails(run("photos", "--boxes", "no.json", *small), r"^Error: no\.json: no such file")
    assert_fails(run("photos", "--metrics", "f1", *small), "^Error: there is no metric 'f1'; ")
    assert_fails(run("photos", *small, "--methods", "cam"), "^Error: there is no method 'cam'; ")
    content = json.loads(Path("boxes.json").read_text())
    content["boxes"]["p1"]["box"] = [0, 0, 64, 65]
    Path("bad.json").write_text(json.dumps(content))
    assert_fails(
        run("photos", "--boxes", "bad.json", *small),
        r"^Error: bad\.json, p1: the box must lie in the photo of 64 x 64 pixels, got \[0, 0, 64",
    )
    content["boxes"]["p1"] = {"box": [0, 0, 64, 64], "imagenet": 7}
    Path("bad.json").write_text(json.dumps(content))
    assert_fails(
        run("photos", "--boxes", "bad.json", *QUICK, *small),
        r"Error: p1\.png: the class must be between 0 and 6 for this network, got 7\.",
    )
    Path("file").write_text("")
    assert_fails(run("photos", *small, "-o", "file/out"), "file/out: cannot be made")


def test_misuse_exits_with_2(small: list[str]) -> None:
    assert_fails(run("photos"), "Missing option '-o'", code=2)
    assert_fails(run("photos", "--images", "videos", *small), "must be of photos, grids, small", 2)
    assert_fails(run("photos", "--count", "0", *small), "0 is not in the range x>=1", code=2)


def test_help_shows_the_form_of_boxes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert '"boxes": {"photo_1": {"box": [76, 40, 206, 224], "imagenet":' in result.stdout
    assert "Known: rap, equilibrium, sharing_ratio" in " ".join(result.stdout.split())


def test_the_tables_on_digits() -> None:
    """One step of training: the command works, whatever the network has learned."""
    arguments = ["-o", "digits", "--count", "8", "--steps", "1", "--methods", "rap"]
    result = CliRunner().invoke(evaluate_digits, arguments)
    assert result.exit_code == 0, result.output
    assert "of 1000 held-out pictures are read correctly" in result.stdout
    for kind in ("digits", "digit_ink", "digit_grids", "randomised"):
        found = rows(f"digits/{kind}.csv")
        assert [row["method"] for row in found] == ROWS
        assert Path(f"digits/{kind}.png").exists()
        if kind == "digit_grids":
            assert float(found[1]["region_attribution"]) == pytest.approx(0.25)
    # A control stays what it is, whatever becomes of the network.
    layers = list(found[0])[3::2]
    assert layers == ["15", "10", "8", "5", "3", "0"]
    for row in found[1:]:
        assert [float(row[layer]) for layer in layers] == pytest.approx([1.0] * len(layers))
