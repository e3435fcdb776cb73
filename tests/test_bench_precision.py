"""Low precisions against float64: the figures of one model, its rows as they come, the table."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from bench import precision
from bench.nets import load
from bench.precision import FIELDS, main
from bench.precision_model import METHODS, PRECISIONS, compare, measure
from bench.precision_table import render_precision
from bench.schema import SchemaError

pytestmark = pytest.mark.cpu_only

# Half a unit in the last place.
ROUNDING = {"fp32": 2.0**-24, "fp32, bf16 back": 2.0**-8, "bf16": 2.0**-8, "fp16": 2.0**-11}


def test_the_rows_of_a_model() -> None:
    rows = list(measure("tiny", *load("tiny", 2)))
    named = [(row.precision, row.method) for row in rows]
    assert named == [(precision, method) for precision in PRECISIONS for method in METHODS]
    for row in rows:
        assert row.finite
        # Seven layers, each of which divides: some tens of roundings.
        assert 0 < row.rounded_error < 60 * ROUNDING[row.precision]
        assert 0 < row.error < 60 * ROUNDING[row.precision]
        assert row.cosine > 1 - 60 * ROUNDING[row.precision]
    by_name = {(row.precision, row.method): row for row in rows}
    # It rounds on the way back alone, where the processor can.
    assert by_name["fp32, bf16 back", "rap"].error < by_name["bf16", "rap"].error
    # Nothing is rounded on the way to float32.
    single = by_name["fp32", "rap"]
    assert (single.cosine, single.error) == (single.rounded_cosine, single.rounded_error)
    assert by_name["bf16", "rap"].error > by_name["fp16", "rap"].error > single.error


class Overflows(nn.Module):
    """Returns more than float16 holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.abs() + 1) * 1e6


def test_a_model_that_overflows_has_no_figures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = {
        (row.precision, row.method): row for row in measure("tiny", Overflows(), torch.rand(2, 4))
    }
    assert len(rows) == 8
    assert {key[0] for key, row in rows.items() if not row.finite} == {"fp16"}
    assert math.isnan(rows["fp16", "rap"].cosine)
    precision.write([asdict(rows["fp16", "rap"])], tmp_path / "rows.csv")
    table = render_precision(tmp_path / "rows.csv")
    assert table.splitlines()[2] == "| tiny | RAP | fp16 | **no** | - | - | - | - |"


def test_figures_are_those_of_the_worst_sample() -> None:
    exact = torch.tensor([[1.0, -4.0], [1e200, 0.0]], dtype=torch.float64)
    found = torch.tensor([[1.0, -4.0], [0.0, 1e200]], dtype=torch.float64)
    assert compare(exact, exact) == (pytest.approx(1.0), 0.0)
    assert compare(found, exact) == (0.0, 1.0)


def test_rows_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "precision.csv"
    row = dict.fromkeys(FIELDS, 0.5) | {"model": "vit_b_16", "precision": "fp16", "finite": True}
    row["method"] = "rap"

    def fails_later(*_: object) -> object:
        yield row
        assert len(path.read_text(encoding="utf-8").splitlines()) == 2
        raise RuntimeError("killed")

    monkeypatch.setattr(precision, "measure_apart", fails_later)
    result = CliRunner().invoke(main, ["--model", "vit_b_16", "-o", str(path)])
    assert result.exit_code == 1
    assert "vit_b_16: killed" in result.output
    table = render_precision(path).splitlines()
    assert table[2] == ("| ViT-B/16 | RAP | fp16 | yes | 0.50000 | 5.0e-01 | 0.50000 | 5.0e-01 |")
    with path.open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["finite"] == "True"
    path.write_text("model\nvgg16\n", encoding="utf-8")
    with pytest.raises(SchemaError, match=r"precision\.csv must have rows with the columns"):
        render_precision(path)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="nonesuch"):
        list(precision.measure_apart("nonesuch", 1, None))
