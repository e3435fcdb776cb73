"""The table of torchvision's classifiers: one row, and what a model that fails leaves."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.zoo import FIELDS, classifiers, main
from bench.zoo_model import measure

pytestmark = pytest.mark.cpu_only


def test_all_classifiers_are_listed() -> None:
    assert len(classifiers()) == 80
    assert {"alexnet", "vit_h_14", "maxvit_t", "regnet_y_128gf"} <= set(classifiers())


@pytest.mark.parametrize("method", ["rap", "lrp"])
def test_a_row(method: str) -> None:
    row = measure("squeezenet1_1", 2, method)
    assert row.finite
    assert row.conservation <= 1e-5
    assert row.parameters == 1_235_496
    assert row.operations > 60
    assert row.cost > 1
    if method == "rap":
        assert row.total + row.absorbed == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_rows_are_written_as_they_come_and_failures_told(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    arguments = ["--model", "mnasnet0_5", "--model", "nonesuch", "-o", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "1 of 2 models were explained" in result.output
    assert "failed: nonesuch" in result.output
    with path.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == FIELDS
    assert row["model"] == "mnasnet0_5"
