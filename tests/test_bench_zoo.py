"""The table of torchvision's classifiers: one row, and what a model that fails leaves."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.report import insert
from bench.zoo import FIELDS, main
from bench.zoo_model import measure
from bench.zoo_models import names_of
from bench.zoo_tables import render_zoo

pytestmark = pytest.mark.cpu_only


def test_all_classifiers_of_torchvision_are_listed() -> None:
    names = names_of("torchvision")
    assert len(names) == 80
    assert {"alexnet", "vit_h_14", "maxvit_t", "regnet_y_128gf"} <= set(names)


# One of each kind: of each library, convolutions, gates, attention, windows.
SUBSET = [
    ("torchvision", "squeezenet1_1", "rap"),
    ("torchvision", "squeezenet1_1", "lrp"),
    ("torchvision", "mobilenet_v3_small", "rap"),
    ("timm", "convnextv2_atto", "rap"),
    ("timm", "deit_tiny_distilled_patch16_224", "rap"),
    ("timm", "mixer_s32_224", "rap"),
]


@pytest.mark.parametrize(("library", "name", "method"), SUBSET)
def test_a_subset_runs_and_conserves(library: str, name: str, method: str) -> None:
    row = measure(library, name, 2, method)
    assert row.passes
    assert row.operations > 60
    assert row.cost > 1
    if method == "rap":
        assert row.total + row.absorbed == pytest.approx(1, abs=1e-4)
    if name == "squeezenet1_1":
        assert row.parameters == 1_235_496


@pytest.mark.parametrize("name", ["ViT", "ResNet"])
def test_hugging_face(name: str) -> None:
    pytest.importorskip("transformers")
    row = measure("transformers", name, 1, "rap")
    assert row.passes


@pytest.mark.slow
def test_rows_are_written_as_they_come_and_failures_told(tmp_path: Path) -> None:
    models = ["--model", "mnasnet0_5", "--model", "nonesuch"]
    arguments = ["--library", "torchvision", *models, "-o", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "1 models were explained" in result.output
    assert "failed: nonesuch" in result.output
    path = tmp_path / "torchvision.csv"
    with path.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == FIELDS
    assert row["model"] == "mnasnet0_5"
    table = render_zoo(path)
    assert table.splitlines()[2].startswith("| mnasnet0_5 | 224 | 2.2 M | ")
    assert table in insert("<!-- a -->\n<!-- b -->\n", table, "<!-- a -->", "<!-- b -->")
