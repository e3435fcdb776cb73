"""Low precisions against float64: the figures of one model, its rows as they come, the table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import precision
from bench.nets import load
from bench.precision import FIELDS, main
from bench.precision_model import DTYPES, METHODS, compare, measure
from bench.precision_table import render_precision
from bench.schema import SchemaError

pytestmark = pytest.mark.cpu_only

# Half a unit in the last place.
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def test_the_rows_of_a_model() -> None:
    rows = list(measure("tiny", *load("tiny", 2)))
    named = [(row.dtype, row.method) for row in rows]
    assert named == [(str(dtype)[6:], method) for dtype in DTYPES for method in METHODS]
    for row in rows:
        assert row.finite
        # Seven layers, each of which divides: some tens of roundings.
        assert 0 < row.rounded_error < 60 * ROUNDING[row.dtype]
        assert 0 < row.error < 60 * ROUNDING[row.dtype]
        assert row.cosine > 1 - 60 * ROUNDING[row.dtype]
    by_name = {(row.dtype, row.method): row for row in rows}
    # Nothing is rounded on the way to float32.
    single = by_name["float32", "rap"]
    assert (single.cosine, single.error) == (single.rounded_cosine, single.rounded_error)
    assert by_name["bfloat16", "rap"].error > by_name["float16", "rap"].error > single.error


def test_figures_are_those_of_the_worst_sample() -> None:
    exact = torch.tensor([[1.0, -4.0], [1e200, 0.0]], dtype=torch.float64)
    found = torch.tensor([[1.0, -4.0], [0.0, 1e200]], dtype=torch.float64)
    assert compare(exact, exact) == (pytest.approx(1.0), 0.0)
    assert compare(found, exact) == (0.0, 1.0)


def test_rows_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "precision.csv"
    row = dict.fromkeys(FIELDS, 0.5) | {"model": "vit_b_16", "dtype": "float16", "finite": True}
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
