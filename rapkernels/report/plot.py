"""A report as a figure: four panels along the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rapkernels._optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rapkernels.report.rows import Report, ReportRow

# From the palette of Okabe and Ito, which readers with any colour vision can tell apart.
_BLUE, _ORANGE, _RED = "#0072B2", "#E69F00", "#D55E00"
# Inches and points.
_HEIGHT = 9.0
_WIDTHS = (7.0, 15.0)
_WIDTH_OF_A_ROW = 0.08
_LETTER_HEIGHT = 0.17
_LETTER_WIDTH = 0.075
_MARGINS = 1.2
_POINTS = 8.5
# From the axis down to the labels, as a fraction of the panel's height.
_LEADER = 0.09

Values = NDArray[np.float64]
# The first and the last row of a part of the network, and its name.
_Part = tuple[int, int, str]


def draw_report(report: Report) -> Figure:
    """Four panels over the steps from the output to the input.

    The sum of absolute relevance and the absorbed relevance are in units of what was sent back. Of
    several samples the first panel shows the median and the range, the second the mean, the third
    the worst.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ValueError: the report has no rows (an empty batch).
    """
    if report.is_empty:
        raise ValueError("the report of an empty batch has nothing to plot")
    figure_module = require("matplotlib.figure", "plotting a report", "rapkernels[report]")
    width = min(max(_MARGINS + _WIDTH_OF_A_ROW * len(report.rows), _WIDTHS[0]), _WIDTHS[1])
    most = int((width - _MARGINS) / _LETTER_HEIGHT)
    parts = _parts(report.rows, most)
    height = _HEIGHT + _LETTER_WIDTH * max(len(name) for _, _, name in parts)
    # A Figure of its own draws with Agg and leaves pyplot's global state alone.
    figure: Figure = figure_module.Figure(figsize=(width, height), dpi=110, layout="constrained")
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for axes, draw in zip(panels, _PANELS, strict=True):
        draw(axes, report)
        axes.tick_params(labelsize=_POINTS)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    _label(panels, report, parts, most)
    return figure


def _draw_sums(axes: Axes, report: Report) -> None:
    sums = np.stack([np.abs(report.over_sent(row.magnitude).numpy()) for row in report.rows])
    places = np.arange(len(sums))
    finite = np.where(np.isfinite(sums) & (sums > 0), sums, np.nan)
    low, middle, high = _over_samples(finite)
    if sums.shape[1] > 1:
        axes.fill_between(places, low, high, color=_BLUE, alpha=0.2, linewidth=0)
    axes.plot(places, middle, color=_BLUE, linewidth=1.4, marker=".", markersize=3)
    _scale(axes, finite)
    broken = [place for place, row in enumerate(report.rows) if bool(row.non_finite.any())]
    for place in broken:
        axes.axvline(place, color=_RED, linewidth=0.8)
    detail = _largest(report.rows, high)
    if broken:
        first = _called(report.rows[broken[0]])
        detail = f"NaN or infinite entries (red): {len(broken)} rows, the first in {first}"
    range_ = "; median and range of the samples" if sums.shape[1] > 1 else ""
    _head(axes, f"sum of |R|, over what was sent back{range_}", detail)


def _draw_absorbed(axes: Axes, report: Report) -> None:
    shares = np.stack([report.over_sent(row.absorbed).numpy() for row in report.rows])
    mean = np.where(np.isfinite(shares), shares, 0).mean(1)
    places = np.arange(len(mean))
    axes.bar(places, mean, color=_ORANGE, width=0.9)
    axes.plot(places, mean.cumsum(), color=_BLUE, linewidth=1.2)
    axes.axhline(0, color="0.4", linewidth=0.6)
    detail = "nothing"
    if not mean.any():
        axes.set_ylim(0, 1)
    else:
        most = int(np.abs(mean).argmax())
        detail = (
            f"{_number(mean.sum())} in all; most: {_number(mean[most])} in "
            f"{_called(report.rows[most])}"
        )
    title = "absorbed, over what was sent back: by each step (orange), so far (blue)"
    _head(axes, title, detail)


def _draw_errors(axes: Axes, report: Report) -> None:
    errors = np.stack([row.error.numpy() for row in report.rows])
    _, _, high = _over_samples(np.where(np.isfinite(errors), errors, np.nan))
    places = np.arange(len(high))
    wrong = np.nan_to_num(high) > 0
    _scale(axes, high)
    axes.vlines(places[wrong], axes.get_ylim()[0], high[wrong], color="0.8", linewidth=0.8)
    axes.plot(places[wrong], high[wrong], color=_BLUE, linestyle="", marker="o", markersize=3)
    title = "conservation error; 0 where there is no point"
    _head(axes, title, _largest(report.rows, high))


def _draw_times(axes: Axes, report: Report) -> None:
    forward = np.array([1e3 * row.forward_seconds for row in report.rows])
    backward = np.array([1e3 * row.backward_seconds for row in report.rows])
    places = np.arange(len(forward))
    axes.bar(places, forward, color=_BLUE, width=0.9)
    axes.bar(places, backward, bottom=forward, color=_ORANGE, width=0.9)
    totals = f"{_number(forward.sum() / 1e3)} s and {_number(backward.sum() / 1e3)} s in all"
    _head(axes, "time, ms: forward (blue), backward (orange)", totals)


_PANELS = (_draw_sums, _draw_absorbed, _draw_errors, _draw_times)


def _over_samples(values: Values) -> tuple[Values, Values, Values]:
    """The smallest, the median and the largest of each row, without NaN; NaN where all are."""
    known = ~np.isnan(values).all(1)
    found = [np.full(len(values), np.nan) for _ in range(3)]
    reductions: Sequence[Callable[..., Values]] = (np.nanmin, np.nanmedian, np.nanmax)
    for result, reduction in zip(found, reductions, strict=True):
        result[known] = reduction(values[known], axis=1)
    return found[0], found[1], found[2]


def _largest(rows: Sequence[ReportRow], values: Values) -> str:
    if not np.nan_to_num(values).any():
        return "0 everywhere"
    most = int(np.nanargmax(values))
    return f"largest: {_number(values[most])} in {_called(rows[most])}"


def _called(row: ReportRow) -> str:
    return f"{row.module} ({row.node})" if row.module else row.node


def _number(value: float) -> str:
    return f"{value:.3g}"


def _head(axes: Axes, title: str, detail: str) -> None:
    axes.set_title(title, loc="left", fontsize=_POINTS + 1, pad=18)
    place = (0, 1.04)
    axes.annotate(detail, place, xycoords="axes fraction", fontsize=_POINTS, color="0.35")


def _scale(axes: Axes, values: Values) -> None:
    """A logarithmic scale of whole decades, at least one, around the positive values."""
    positive = values[np.nan_to_num(values) > 0]
    if not positive.size:
        axes.set_yticks([])
        return
    axes.set_yscale("log")
    ends = np.log10([positive.min(), positive.max()]).round(3)
    low, high = np.floor(ends[0]), np.ceil(ends[1])
    axes.set_ylim(10.0**low, 10.0 ** max(high, low + 1))


def _label(panels: Sequence[Axes], report: Report, parts: Sequence[_Part], most: int) -> None:
    """Name the parts of the network under the last panel, with lines between them in all."""
    for axes in panels:
        for begin, _, _ in parts[1:]:
            axes.axvline(begin - 0.5, color="0.85", linewidth=0.6, zorder=0)
        axes.set_xlim(-0.8, len(report.rows) - 0.2)
        axes.tick_params(axis="x", length=0)
    shown = parts[:: -(-len(parts) // most)]
    middles = [(begin + end) / 2 for begin, end, _ in shown]
    places = _apart(middles, len(report.rows) / most, len(report.rows) - 1)
    panels[-1].set_xticks(places, [name for _, _, name in shown], rotation=90)
    panels[-1].tick_params(axis="x", pad=12)
    for middle, place in zip(middles, places, strict=True):
        panels[-1].plot(
            [middle, place],
            [0, -_LEADER],
            transform=panels[-1].get_xaxis_transform(),
            clip_on=False,
            color="0.6",
            linewidth=0.6,
        )
    samples = len(report.target)
    panels[-1].set_xlabel(
        "from the output, where relevance starts, to the input"
        + (f"; {samples} samples" if samples > 1 else ""),
        fontsize=_POINTS,
    )


def _apart(places: Sequence[float], gap: float, last: float) -> list[float]:
    """Places in order, moved as little as a gap between neighbours and an end ask for."""
    moved = list(places)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], last - gap * (len(moved) - 1 - index))
    return moved


def _parts(rows: Sequence[ReportRow], most: int) -> list[_Part]:
    """Runs of rows in one module, as deep in the tree of modules as leaves few enough."""
    deepest = max(row.module.count(".") + 1 for row in rows)
    found = _parts_at(rows, 1)
    for depth in range(2, deepest + 1):
        deeper = _parts_at(rows, depth)
        if len(deeper) > most:
            break
        found = deeper
    return found


def _parts_at(rows: Sequence[ReportRow], depth: int) -> list[_Part]:
    # The model's own operations have no module to be named by.
    names = [".".join(row.module.split(".")[:depth]) or row.node for row in rows]
    parts: list[_Part] = []
    for name, run in groupby(range(len(rows)), key=names.__getitem__):
        places = list(run)
        parts.append((places[0], places[-1], name))
    return parts
