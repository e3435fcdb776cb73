"""The CSV files of the zoo as Markdown tables: what docs/models.md shows."""

from __future__ import annotations

import csv
from pathlib import Path

from bench.schema import SchemaError

_HEAD = (
    *("model", "side", "parameters", "operations", "export and plan, s", "cost, forwards"),
    *("peak GB", "finite", "conservation error", "total / logit", "growth", "absorbed by"),
)


def render_zoo(path: Path) -> str:
    """One line per model.

    Raises:
        OSError: the file cannot be read.
        SchemaError: it has no rows.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise SchemaError(f"{path.name} has no rows")
    lines = [list(_HEAD), ["---"] * len(_HEAD), *map(_line, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(row: dict[str, str]) -> list[str]:
    return [
        row["model"],
        row["image"],
        f"{int(row['parameters']) / 1e6:.1f} M",
        row["operations"],
        f"{float(row['prepare_seconds']):.1f}",
        f"{float(row['cost']):.1f}",
        f"{float(row['peak_gb']):.2f}",
        "yes" if row["finite"] == "True" else "**no**",
        f"{float(row['conservation']):.0e}",
        f"{float(row['total']):.3g}",
        f"{float(row['growth']):.2g}",
        row["absorbers"] or "-",
    ]
