"""Named layer shapes of real networks, read from ``shapes.csv``."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("shapes.csv")


@dataclass(frozen=True)
class LayerShape:
    """One row of ``shapes.csv``; sizes are tuples, empty where the op has none.

    rule: for ops with several rules; empty for RAP's.
    targets: how many relevances of each sample are sent back at once.
    """

    name: str
    network: str
    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    kernel: int
    stride: int
    padding: int
    groups: int
    rule: str = ""
    targets: int = 1

    @property
    def spatial(self) -> int:
        """Number of spatial dimensions of x."""
        return len(self.x) - 2

    def result_size(self) -> tuple[int, ...]:
        """Spatial size of the layer's output (floor mode, dilation 1)."""
        if self.output:
            return self.output
        kernel = self.weight[2:] or (self.kernel,) * self.spatial
        return tuple(
            (size + 2 * self.padding - k) // self.stride + 1
            for size, k in zip(self.x[2:], kernel, strict=True)
        )

    def operations(self) -> int:
        """Floating-point operations of the layer's own forward pass."""
        if not self.weight:
            return 0
        positions = math.prod(self.result_size()) if self.spatial > 0 else 1
        return 2 * self.x[0] * math.prod(self.weight) * positions


def layer_shapes(path: Path = FILE) -> list[LayerShape]:
    """All rows, in the order of the file."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [_parse(row) for row in csv.DictReader(stream)]


def _parse(row: dict[str, str]) -> LayerShape:
    return LayerShape(
        name=row["name"],
        network=row["network"],
        op=row["op"],
        x=_sizes(row["x"]),
        weight=_sizes(row["weight"]),
        output=_sizes(row["output"]),
        kernel=int(row["kernel"] or 1),
        stride=int(row["stride"] or 1),
        padding=int(row["padding"] or 0),
        groups=int(row["groups"] or 1),
        rule=row["rule"],
        targets=int(row["targets"] or 1),
    )


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x")) if text else ()
