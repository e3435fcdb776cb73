"""The CSV file of `bench.precision` as a Markdown table: what docs/precision.md shows."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from bench.precision import FIELDS
from bench.schema import SchemaError

_LABELS = {
    "efficientnet_lite0": "EfficientNet-Lite0",
    "vgg16": "VGG-16",
    "resnet50": "ResNet-50",
    "convnext_tiny": "ConvNeXt-T",
    "vit_b_16": "ViT-B/16",
}
_METHODS = {"rap": "RAP", "lrp": "LRP"}
_HEAD = (
    "model",
    "method",
    "precision",
    "finite",
    "cosine",
    "largest error",
    "cosine, rounded model",
    "largest error, rounded model",
)


def render_precision(path: Path) -> str:
    """One row per model, method and precision.

    Raises:
        OSError: the file cannot be read.
        SchemaError: it has no rows, or not the columns of `bench.precision`.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or list(rows[0]) != FIELDS:
        raise SchemaError(f"{path.name} must have rows with the columns {', '.join(FIELDS)}")
    lines = [list(_HEAD), ["---"] * len(_HEAD)]
    order = sorted(
        rows, key=lambda row: (_place(row["model"]), list(_METHODS).index(row["method"]))
    )
    for row in order:
        figures = (row[name] for name in ("cosine", "error", "rounded_cosine", "rounded_error"))
        lines.append(
            [
                _LABELS.get(row["model"], row["model"]),
                _METHODS[row["method"]],
                row["precision"],
                "yes" if row["finite"] == "True" else "**no**",
                *(_figure(place, float(value)) for place, value in enumerate(figures)),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _place(model: str) -> int:
    names = list(_LABELS)
    return names.index(model) if model in names else len(names)


def _figure(place: int, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.5f}" if place % 2 == 0 else f"{value:.1e}"
