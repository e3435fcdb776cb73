"""Metric tables: a row for each method, a column for each metric, as text and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..tables import format_table
from .cases import EvaluationError

Better = Literal["higher", "lower", ""]
_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
_STANDARD_ERROR = "_se"


@dataclass(frozen=True)
class Heading:
    """A column of a table.

    Attributes:
        name: in CSV and on the command line.
        title: over the column, short.
        better: which values are; "" where neither is.
        meaning: one line.
    """

    name: str
    title: str
    better: Better
    meaning: str

    @property
    def with_arrow(self) -> str:
        """The title, with an arrow to the better side."""
        return self.title + _ARROWS[self.better]


@dataclass(frozen=True)
class Cell:
    """The mean of a metric over images.

    Attributes:
        mean: over the images for which the metric is defined (not NaN); NaN where there is none.
        standard_error: of that mean, with n - 1; NaN for fewer than two images.
        images: how many those are.
    """

    mean: float
    standard_error: float
    images: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Cell:
        """From one value per image."""
        defined = [value for value in values if not math.isnan(value)]
        count = len(defined)
        if not count:
            return cls(math.nan, math.nan, 0)
        mean = math.fsum(defined) / count
        if count < 2 or not math.isfinite(mean):
            return cls(mean, math.nan, count)
        variance = math.fsum((value - mean) ** 2 for value in defined) / (count - 1)
        return cls(mean, math.sqrt(variance / count), count)


@dataclass(frozen=True)
class Row:
    """A method: its name in CSV, its label, whether it is a control, its cells by column name."""

    name: str
    label: str
    control: bool
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """Methods, controls last, and what they score.

    Attributes:
        title: what was evaluated.
        images: how many.
        headings: the columns.
        rows: the methods.
        notes: sentences below the table.
    """

    title: str
    images: int
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def as_text(self) -> str:
        """The table in plain text: means, then what each column is, then the notes."""
        header = ["method", *(heading.with_arrow for heading in self.headings)]
        lines = [
            [row.label, *(self._cell(row.cells[heading.name]) for heading in self.headings)]
            for row in self.rows
        ]
        meanings = [(heading.title, heading.meaning) for heading in self.headings]
        width = max((len(title) for title, _ in meanings), default=0)
        parts = [
            f"{self.title}: {self.images} images",
            format_table(header, lines),
            "\n".join(f"{title:<{width}}  {meaning}" for title, meaning in meanings),
            "\n".join(self.all_notes()),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def all_notes(self) -> tuple[str, ...]:
        """The notes, and what the marks in the table mean."""
        partial = any(self._is_partial(cell) for row in self.rows for cell in row.cells.values())
        mark = ("* the mean of fewer images: the metric is not defined for all of them.",)
        return (*self.notes, *(mark if partial else ()))

    def _cell(self, cell: Cell) -> str:
        return format_value(cell.mean) + ("*" if self._is_partial(cell) else "")

    def _is_partial(self, cell: Cell) -> bool:
        return cell.images < self.images

    def write_csv(self, path: str | Path) -> None:
        """Write means and, in columns NAME_se, their standard errors; not defined is empty.

        Raises:
            EvaluationError: the file cannot be written.
        """
        names = [heading.name for heading in self.headings]
        header = ["method", "control", "images"]
        header += [column for name in names for column in (name, name + _STANDARD_ERROR)]
        try:
            with Path(path).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(header)
                for row in self.rows:
                    start: list[object] = [row.name, int(row.control), self.images]
                    writer.writerow(start + _numbers([row.cells[name] for name in names]))
        except OSError as error:
            raise _unwritable(path, error) from None

    def write_text(self, path: str | Path) -> None:
        """Write :meth:`as_text`.

        Raises:
            EvaluationError: the file cannot be written.
        """
        try:
            Path(path).write_text(self.as_text(), encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from None


def format_value(value: float) -> str:
    """Three digits behind the point, or three significant ones; "-" for what is not defined."""
    if math.isnan(value):
        return "-"
    if value == 0 or 0.0995 <= abs(value) < 1000:
        return f"{value:.3f}"
    return f"{value:.3g}"


def _numbers(cells: Sequence[Cell]) -> list[object]:
    values = [value for cell in cells for value in (cell.mean, cell.standard_error)]
    return ["" if math.isnan(value) else repr(value) for value in values]


def _unwritable(path: str | Path, error: OSError) -> EvaluationError:
    return EvaluationError(f"{path}: cannot be written ({error.strerror}).")
