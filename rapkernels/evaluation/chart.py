"""A metric table as a figure: bars, one panel for each metric."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .._optional import require
from .table import Heading, Table, format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the palette of Okabe and Ito, which readers with any colour vision can tell apart; controls
# are hatched too.
METHOD_COLOUR = "#0072B2"
CONTROL_COLOUR = "#E69F00"
_CONTROL_HATCH = "///"

# Inches.
_PANELS_ACROSS = 4
_PANEL_WIDTH = 2.6
_BAR_HEIGHT = 0.24
_PANEL_EXTRA = 0.75
_LETTER_WIDTH = 0.075
_HEAD = 0.55
_POINTS = 8.5


def draw_table(table: Table) -> Figure:
    """Bars of the means with their standard errors; controls are orange and hatched.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "drawing a metric table", "rapkernels[cli]")
    across = min(_PANELS_ACROSS, max(1, len(table.headings)))
    down = max(1, math.ceil(len(table.headings) / across))
    labels = [row.label for row in table.rows]
    margin = 0.3 + _LETTER_WIDTH * max(map(len, labels), default=0)
    width = margin + across * _PANEL_WIDTH
    height = _HEAD + down * (_PANEL_EXTRA + _BAR_HEIGHT * len(labels)) + 0.25
    figure: Figure = figure_module.Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(f"{table.title}: {table.images} images", fontsize=_POINTS + 2.5)
    panels = figure.subplots(down, across, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(table.headings):
            axes.set_axis_off()
            continue
        _draw_panel(axes, table, table.headings[place])
        axes.set_yticks(range(len(labels)), labels if place % across == 0 else [])
        axes.tick_params(labelsize=_POINTS)
    _add_legend(figure, table)
    return figure


def _draw_panel(axes: Axes, table: Table, heading: Heading) -> None:
    cells = [row.cells[heading.name] for row in table.rows]
    for place, (row, cell) in enumerate(zip(table.rows, cells, strict=True)):
        length = cell.mean if math.isfinite(cell.mean) else 0.0
        axes.barh(
            place,
            length,
            xerr=cell.standard_error if math.isfinite(cell.standard_error) else None,
            color=CONTROL_COLOUR if row.control else METHOD_COLOUR,
            hatch=_CONTROL_HATCH if row.control else "",
            edgecolor="white",
            ecolor="0.25",
            capsize=2,
            height=0.78,
        )
        axes.annotate(
            format_value(cell.mean),
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=_POINTS - 1,
            color="0.25",
        )
    axes.set_title(heading.with_arrow, fontsize=_POINTS + 0.5)
    axes.axvline(0.0, color="0.4", linewidth=0.6)
    axes.invert_yaxis()
    axes.margins(y=0.02)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _add_legend(figure: Figure, table: Table) -> None:
    patch = require("matplotlib.patches", "drawing a metric table", "rapkernels[cli]").Patch
    handles = [
        patch(facecolor=METHOD_COLOUR, edgecolor="white", label="method"),
        patch(facecolor=CONTROL_COLOUR, edgecolor="white", hatch=_CONTROL_HATCH, label="control"),
    ]
    shown = [handles[row.control] for row in table.rows]
    kinds = [handle for handle in handles if handle in shown]
    if kinds:
        figure.legend(
            handles=kinds, loc="outside lower right", ncols=2, fontsize=_POINTS, frameon=False
        )
