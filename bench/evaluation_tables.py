"""The CSV files of evaluations as Markdown tables: what docs/evaluation.md shows."""

from __future__ import annotations

import csv
from pathlib import Path

from bench.schema import SchemaError
from rapkernels.evaluation import COLUMNS, METHODS
from rapkernels.evaluation.table import format_value

# Seconds were taken beside other work; README has the cost of methods.
_LEFT_OUT = ("seconds",)
_STANDARD_ERROR = "_se"


def render_evaluation(path: Path) -> str:
    """Methods, controls in italics, and their means, each with its standard error.

    Raises:
        OSError: the file cannot be read.
        SchemaError: it has no rows, or a method that is not known.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise SchemaError(f"{path.name} has no rows")
    names = [name for name in rows[0] if f"{name}{_STANDARD_ERROR}" in rows[0]]
    names = [name for name in names if name not in _LEFT_OUT]
    head = [f"{rows[0]['images']} images", *(_title(name) for name in names)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        if row["method"] not in METHODS:
            raise SchemaError(f"{path.name} has the method {row['method']}, which is not known")
        label = METHODS[row["method"]].label
        cells = [_cell(row[name], row[f"{name}{_STANDARD_ERROR}"]) for name in names]
        lines.append([f"*{label}*" if row["control"] == "1" else label, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _title(name: str) -> str:
    return COLUMNS[name].heading.with_arrow if name in COLUMNS else f"`{name}`"


def _cell(mean: str, error: str) -> str:
    if not mean:
        return "-"
    return format_value(float(mean)) + (f" ± {float(error):.2f}" if error else "")
