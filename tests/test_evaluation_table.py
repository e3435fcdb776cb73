"""Metric tables: means, text, CSV, figure."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from rapkernels.evaluation import Cell, EvaluationError, Heading, Row, Table, draw_table
from rapkernels.evaluation.chart import CONTROL_COLOUR, METHOD_COLOUR
from rapkernels.evaluation.table import format_value
from rapkernels.figures import save_figure

pytestmark = pytest.mark.cpu_only

NAN = math.nan
HEADINGS = (
    Heading("inside", "inside", "higher", "share on the object"),
    Heading("seconds", "s/image", "lower", "seconds per image"),
)


def table() -> Table:
    rap = {"inside": Cell(0.5, 0.1, 4), "seconds": Cell(0.012, NAN, 4)}
    disc = {"inside": Cell(0.9, NAN, 3), "seconds": Cell(NAN, NAN, 0)}
    rows = (Row("rap", "RAP", False, rap), Row("disc", "centred disc", True, disc))
    return Table("net on photos", 4, HEADINGS, rows, ("A note.",))


def test_a_cell_is_mean_and_standard_error() -> None:
    cell = Cell.of([1.0, 2.0, 3.0, 6.0])
    assert cell.mean == 3.0
    # Variance (4 + 1 + 0 + 9) / 3, over four images.
    assert cell.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert cell.images == 4


def test_what_is_not_defined_does_not_count() -> None:
    assert Cell.of([NAN, 2.0, 4.0]) == Cell(3.0, 1.0, 2)
    one, none, infinite = Cell.of([5.0]), Cell.of([NAN]), Cell.of([math.inf, 1.0])
    assert (one.mean, one.images) == (5.0, 1)
    assert math.isnan(one.standard_error)
    assert math.isnan(none.mean)
    assert none.images == 0
    assert infinite.mean == math.inf
    assert math.isnan(infinite.standard_error)


def test_text() -> None:
    assert table().as_text() == (
        "net on photos: 4 images\n\n"
        "method        inside ↑  s/image ↓\n"
        "------------  --------  ---------\n"
        "RAP           0.500     0.012\n"
        "centred disc  0.900*    -*\n\n"
        "inside   share on the object\n"
        "s/image  seconds per image\n\n"
        "A note.\n"
        "* the mean of fewer images: the metric is not defined for all of them.\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.12345, "0.123"),
        (-0.5, "-0.500"),
        (0.0012345, "0.00123"),
        (1234.5, "1.23e+03"),
        (12.3456, "12.346"),
        (math.inf, "inf"),
        (NAN, "-"),
    ],
)
def test_values(value: float, text: str) -> None:
    assert format_value(value) == text


def test_csv(tmp_path: Path) -> None:
    table().write_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "method": "rap",
        "control": "0",
        "images": "4",
        "inside": "0.5",
        "inside_se": "0.1",
        "seconds": "0.012",
        "seconds_se": "",
    }
    assert (second["control"], second["inside"], second["seconds"]) == ("1", "0.9", "")


def test_text_file(tmp_path: Path) -> None:
    table().write_text(tmp_path / "table.txt")
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == table().as_text()


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    for write in (table().write_csv, table().write_text):
        with pytest.raises(EvaluationError, match=r"table: cannot be written \(No such file"):
            write(tmp_path / "none" / "table")


def test_the_figure_has_a_panel_for_each_metric_and_marks_controls(tmp_path: Path) -> None:
    figure = draw_table(table())
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["inside ↑", "s/image ↓"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["RAP", "centred disc"]
    bars = panels[0].patches
    assert [bar.get_width() for bar in bars] == [0.5, 0.9]
    assert [bar.get_facecolor() for bar in bars] == [rgb(METHOD_COLOUR), rgb(CONTROL_COLOUR)]
    assert [bool(bar.get_hatch()) for bar in bars] == [False, True]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["method", "control"]
    assert figure.get_suptitle() == "net on photos: 4 images"
    save_figure(figure, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def rgb(colour: str) -> tuple[float, ...]:
    return (*(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)), 1.0)
