"""The growth of the cost of RAP as a table and a picture: what docs/speed.md shows."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.limits import STEADY
from bench.nets import NETWORKS
from bench.render import joined, made_by, row
from bench.schema import Growth

# Which batches and how many targets are in the table; the picture has all.
_SHOWN = (1, 2, 4, 5, 8, 10, 16, 20, 32, 64)
_UNITS = {
    "batch": "batch: forwards (ms per sample)",
    "targets": "targets of one sample: forwards (ms per target)",
}


def render_growth(runs: Sequence[Growth]) -> str:
    """One table for the batch, one for targets, one row per network; and how straight they are."""
    parts = []
    for grows, head in _UNITS.items():
        chosen = [run for run in runs if run.grows == grows]
        if chosen:
            parts += [_table(chosen, head), joined(map(_straightness, chosen))]
    unsteady = joined(map(_unsteady, runs))
    return "\n\n".join(part for part in [*parts, unsteady, made_by(runs)] if part)


def line_of(run: Growth) -> tuple[float, float, float]:
    """The straight line through the points: forwards for one more, forwards of none, deviation.

    It is fitted to relative errors, so that few count as much as many; the deviation is the largest
    of a point, of what the line says. Forwards are those of one sample.
    """
    unit = run.points[0].forward_seconds
    counts = [float(point.count) for point in run.points]
    costs = [point.seconds / unit for point in run.points]
    weights = [1 / cost**2 for cost in costs]
    total = sum(weights)
    mean = sum(w * n for w, n in zip(weights, counts, strict=True)) / total
    mean_cost = sum(w * c for w, c in zip(weights, costs, strict=True)) / total
    covariance = sum(
        w * (n - mean) * (c - mean_cost) for w, n, c in zip(weights, counts, costs, strict=True)
    )
    slope = covariance / sum(w * (n - mean) ** 2 for w, n in zip(weights, counts, strict=True))
    rest = mean_cost - slope * mean
    deviation = max(abs(c / (rest + slope * n) - 1) for n, c in zip(counts, costs, strict=True))
    return slope, rest, deviation


def _table(runs: Sequence[Growth], head: str) -> str:
    counts = [n for n in _SHOWN if any(point.count == n for run in runs for point in run.points)]
    lines = [row([head, *map(str, counts)]), row(["---"] * (len(counts) + 1))]
    for run in runs:
        points = {point.count: point for point in run.points}
        cells = [
            f"{p.seconds / p.forward_seconds:.1f} ({p.seconds / n * 1e3:.0f})"
            if (p := points.get(n))
            else ""
            for n in counts
        ]
        lines.append(row([NETWORKS[run.network].label, *cells]))
    return "\n".join(lines)


def _straightness(run: Growth) -> str:
    slope, rest, deviation = line_of(run)
    each = "sample" if run.grows == "batch" else "target"
    return (
        f"{NETWORKS[run.network].label}: {slope:.2f} forwards of one sample for each {each} and "
        f"{rest:.2f} once; no point is further than {deviation:.0%} from that line."
    )


def _unsteady(run: Growth) -> str:
    if run.spread <= STEADY:
        return ""
    return (
        f"{NETWORKS[run.network].label}, {run.grows}: the unit varied by {run.spread:.0%} over the "
        "rounds, so something else ran on this machine: **the costs are not usable**."
    )


def digest(results: Path) -> str:
    """What a picture says it was drawn from."""
    return f"{results.name} {hashlib.sha256(results.read_bytes()).hexdigest()}"


def draw_growth(runs: Sequence[Growth], source: str, picture: Path) -> None:
    """Draw the points and their lines as an SVG that holds `source`."""
    matplotlib: Any = importlib.import_module("matplotlib")
    figure_of: Any = importlib.import_module("matplotlib.figure").Figure
    # The same file for the same points.
    with matplotlib.rc_context({"svg.hashsalt": "growth", "svg.fonttype": "none"}):
        figure = figure_of(figsize=(9, 3.6), layout="constrained")
        for axes, grows in zip(figure.subplots(1, 2), _UNITS, strict=True):
            for run in runs:
                if run.grows == grows:
                    _draw(axes, run)
            axes.set_xlabel("samples" if grows == "batch" else "targets of one sample")
            axes.set_ylabel("cost of RAP, forwards of one sample")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        figure.savefig(
            picture, format="svg", metadata={"Date": None, "Creator": None, "Description": source}
        )


def _draw(axes: Any, run: Growth) -> None:
    unit = run.points[0].forward_seconds
    counts = [point.count for point in run.points]
    (points,) = axes.plot(
        counts,
        [point.seconds / unit for point in run.points],
        "o",
        markersize=4,
        label=NETWORKS[run.network].label,
    )
    slope, rest, _ = line_of(run)
    ends = [0, counts[-1]]
    axes.plot(ends, [rest + slope * n for n in ends], "-", linewidth=1, color=points.get_color())
