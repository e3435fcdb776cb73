"""Heat maps of several methods beside their photo, in one figure.

The colours are those of :mod:`rapkernels.heatmap`: red for positive relevance, blue for negative,
white for exactly zero, symmetric about zero. Methods have units of their own, so each map has its
own scale, up to its largest absolute value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ._optional import require
from .heatmap import COLOUR_MAP, COLOURS, HeatmapError, colour_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

_PURPOSE = "drawing a comparison"
_EXTRA = "rapkernels[cli]"
# Inches and points.
_PANEL_AREA = 6.0
_HEAD = 0.3
_FOOT = 0.45
_GAP = 0.18
_MARGIN = 0.15
_BAR = 0.75
_HEADING_POINTS = 10.5
_DETAIL_POINTS = 8.0
_DPI = 110
# Up to this many panels stand in one row.
_ACROSS = 4


@dataclass(frozen=True)
class Panel:
    """A method's map (H, W), float64, with its name above and a line or two below."""

    heading: str
    detail: str
    map: NDArray[np.float64]


def draw_comparison(view: Image, heading: str, detail: str, panels: Sequence[Panel]) -> Figure:
    """A figure with the photo first, then a panel for each method, in rows.

    Args:
        view: the region of the photo that the network saw.
        heading: over the photo.
        detail: below it.
        panels: the methods, at least one.

    Raises:
        HeatmapError: no panels, or a map that is not (H, W).
        MissingPackageError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", _PURPOSE, _EXTRA)
    if not panels:
        raise HeatmapError("a comparison needs at least one method, got none.")
    for panel in panels:
        if panel.map.ndim != 2:
            raise HeatmapError(f"maps must have shape (H, W), got {panel.map.shape}.")
    page = _Page.of(view, 1 + len(panels))
    figure: Figure = figure_module.Figure(figsize=(page.width, page.height), dpi=_DPI)
    extent = (0, view.width, view.height, 0)
    photo = figure.add_axes(page.box(0))
    photo.imshow(view, extent=extent, aspect="auto")
    _caption(photo, heading, detail, page)
    colours = require("matplotlib", _PURPOSE, _EXTRA).colormaps[COLOUR_MAP].resampled(COLOURS)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_axes(page.box(place))
        # Divided by its limit, so that one colour bar serves all of them.
        image = axes.imshow(
            panel.map / colour_limit(panel.map),
            extent=extent,
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            vmin=-1.0,
            vmax=1.0,
        )
        _caption(axes, panel.heading, panel.detail, page)
    bar = figure.colorbar(image, cax=figure.add_axes(page.bar()), ticks=[-1, 0, 1])
    bar.set_label("share of the map's largest", fontsize=_DETAIL_POINTS)
    bar.ax.tick_params(labelsize=_DETAIL_POINTS)
    bar.outline.set_linewidth(0.5)
    return figure


@dataclass(frozen=True)
class _Page:
    """Where things are, in inches: rows of panels of the photo's shape, the colour bar beside."""

    across: int
    down: int
    panel_width: float
    panel_height: float

    @classmethod
    def of(cls, view: Image, panels: int) -> _Page:
        across = min(panels, _ACROSS)
        height = math.sqrt(_PANEL_AREA * view.height / view.width)
        return cls(across, math.ceil(panels / across), _PANEL_AREA / height, height)

    @property
    def width(self) -> float:
        return 2 * _MARGIN + self.across * (self.panel_width + _GAP) + _BAR

    @property
    def height(self) -> float:
        return _MARGIN + self.down * (_HEAD + self.panel_height + _FOOT)

    def box(self, place: int) -> tuple[float, float, float, float]:
        row, column = divmod(place, self.across)
        left = _MARGIN + column * (self.panel_width + _GAP)
        top = _HEAD + row * (_HEAD + self.panel_height + _FOOT)
        return self._share(left, top, self.panel_width)

    def bar(self) -> tuple[float, float, float, float]:
        left = _MARGIN + self.across * (self.panel_width + _GAP)
        return self._share(left, _HEAD, 0.14)

    def _share(self, left: float, top: float, width: float) -> tuple[float, float, float, float]:
        bottom = self.height - top - self.panel_height
        return (
            left / self.width,
            bottom / self.height,
            width / self.width,
            self.panel_height / self.height,
        )


def _caption(axes: Axes, heading: str, detail: str, page: _Page) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color("0.6")
    place = axes.transAxes
    axes.text(0, 1 + 0.07 / page.panel_height, heading, transform=place, fontsize=_HEADING_POINTS)
    axes.text(
        0,
        -0.06 / page.panel_height,
        detail,
        transform=place,
        fontsize=_DETAIL_POINTS,
        color="0.35",
        va="top",
        linespacing=1.35,
    )
