"""Tables: rows by the name of their node, plain text, data frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from rapkernels._optional import require

if TYPE_CHECKING:
    from pandas import DataFrame


class _OfNode(Protocol):
    @property
    def node(self) -> str: ...


Row = TypeVar("Row", bound=_OfNode)


class Rows(Generic[Row]):
    """Rows that are about nodes of a graph: iterate over them, or take one by its node's name."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, node: object) -> bool:
        return any(row.node == node for row in self.rows)

    def __getitem__(self, node: str) -> Row:
        for row in self.rows:
            if row.node == node:
                return row
        raise KeyError(f"node must be the name of one that has a row, got {node!r}")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns with two spaces between them, under a header and a rule of dashes."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    table.insert(1, ["-" * width for width in widths])
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def data_frame(columns: Mapping[str, Sequence[object]]) -> DataFrame:
    """A pandas data frame of columns.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    pandas = require("pandas", "making a data frame", "rapkernels[report]")
    return pandas.DataFrame(dict(columns))
