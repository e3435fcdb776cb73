"""Heat maps: relevance as colours that are symmetric about zero, beside the photo.

Colours are matplotlib's "seismic", as in the RAP paper: red for positive relevance, blue for
negative, white for exactly zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ._optional import require
from .figures import FigureError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from PIL.Image import Image

COLOUR_MAP = "seismic"
# Odd, so that zero falls on the middle colour, which is exactly white.
COLOURS = 257

# Lengths on the page are inches, sizes of letters are points.
_PANEL_AREA = 13.0
_MARGIN = 0.15
_GAP = 0.2
_BAR_WIDTH = 0.16
_BAR_LABELS = 0.68
_HEADER = 0.58
_NOTE_LINE = 0.26
_HEADING_POINTS = 11.0
_DETAIL_POINTS = 8.5
_LETTER_WIDTH = 0.0078
_DPI = 110


class HeatmapError(FigureError):
    """A heat map cannot be drawn; the message says why."""


@dataclass(frozen=True)
class Caption:
    """The words on a figure: a heading over each panel, a line below it, notes at the foot."""

    photo: str = ""
    photo_detail: str = ""
    map: str = ""
    map_detail: str = ""
    note: str = ""


def sum_channels(relevance: torch.Tensor) -> NDArray[np.float64]:
    """The heat map (H, W), float64, of a relevance (C, H, W) or (H, W): the sum over its channels.

    Raises:
        HeatmapError: another number of dimensions.
    """
    if relevance.dim() not in (2, 3):
        raise HeatmapError(
            f"relevance must have shape (C, H, W) or (H, W), got {tuple(relevance.shape)}; "
            "draw one sample of a batch at a time."
        )
    values = relevance.detach().to(device="cpu", dtype=torch.float64)
    heat: NDArray[np.float64] = (values.sum(dim=0) if values.dim() == 3 else values).numpy()
    return heat


def colour_limit(heat: NDArray[np.float64]) -> float:
    """The largest absolute value; 1 for a map of zeros, which is then white all over."""
    largest = float(np.abs(heat).max(initial=0.0))
    return largest if largest > 0.0 and np.isfinite(largest) else 1.0


def draw(view: Image, relevance: torch.Tensor, caption: Caption | None = None) -> Figure:
    """A figure with the photo and, beside it, its heat map with a colour bar.

    Args:
        view: the region of the photo that the network saw; the map is drawn over the same extent.
        relevance: (C, H, W) or (H, W), the relevance of the network's input.
        caption: the words on the figure.

    Raises:
        HeatmapError: relevance has another shape.
        MissingPackageError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "drawing a heat map", "rapkernels[cli]")
    caption = caption or Caption()
    heat = sum_channels(relevance)
    limit = colour_limit(heat)
    page = _Page.around(view, with_note=bool(caption.note))
    # A Figure of its own draws with Agg and leaves pyplot's global state alone.
    figure: Figure = figure_module.Figure(figsize=(page.width, page.height), dpi=_DPI)
    extent = (0, view.width, view.height, 0)

    photo_axes = figure.add_axes(page.panel(0))
    photo_axes.imshow(view, extent=extent, aspect="auto")
    map_axes = figure.add_axes(page.panel(1))
    colours = map_axes.imshow(
        heat,
        extent=extent,
        aspect="auto",
        interpolation="nearest",
        cmap=require("matplotlib", "drawing a heat map", "rapkernels[cli]")
        .colormaps[COLOUR_MAP]
        .resampled(COLOURS),
        vmin=-limit,
        vmax=limit,
    )
    _add_colour_bar(figure, colours, page)
    _head(photo_axes, caption.photo, caption.photo_detail, page)
    _head(map_axes, caption.map, caption.map_detail, page)
    figure.text(
        _MARGIN / page.width,
        _MARGIN / page.height,
        caption.note,
        fontsize=_fitting(caption.note, page.width - 2 * _MARGIN, _DETAIL_POINTS),
        color="firebrick",
    )
    return figure


@dataclass(frozen=True)
class _Page:
    """Where things are, in inches: two panels of the photo's aspect ratio, then the colour bar."""

    panel_width: float
    panel_height: float
    foot: float

    @classmethod
    def around(cls, view: Image, with_note: bool) -> _Page:
        aspect = view.width / view.height
        height = math.sqrt(_PANEL_AREA / aspect)
        return cls(height * aspect, height, _MARGIN + (_NOTE_LINE if with_note else 0.0))

    @property
    def width(self) -> float:
        return 2 * (_MARGIN + self.panel_width) + 1.5 * _GAP + _BAR_WIDTH + _BAR_LABELS

    @property
    def height(self) -> float:
        return self.foot + self.panel_height + _HEADER

    def panel(self, place: int) -> tuple[float, float, float, float]:
        return self._box(_MARGIN + place * (self.panel_width + _GAP), self.panel_width)

    def bar(self) -> tuple[float, float, float, float]:
        return self._box(_MARGIN + 2 * self.panel_width + 1.5 * _GAP, _BAR_WIDTH)

    def _box(self, left: float, width: float) -> tuple[float, float, float, float]:
        return (
            left / self.width,
            self.foot / self.height,
            width / self.width,
            self.panel_height / self.height,
        )


def _add_colour_bar(figure: Figure, colours: AxesImage, page: _Page) -> None:
    bar = figure.colorbar(colours, cax=figure.add_axes(page.bar()))
    bar.set_label("relevance of a pixel", fontsize=_DETAIL_POINTS)
    bar.ax.tick_params(labelsize=_DETAIL_POINTS - 1)
    bar.outline.set_linewidth(0.5)


def _head(axes: Axes, heading: str, detail: str, page: _Page) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color("0.6")
    for text, points, above, colour in (
        (heading, _HEADING_POINTS, 0.30, "black"),
        (detail, _DETAIL_POINTS, 0.10, "0.35"),
    ):
        axes.text(
            0.0,
            1.0 + above / page.panel_height,
            text,
            transform=axes.transAxes,
            fontsize=_fitting(text, page.panel_width, points),
            color=colour,
        )


def _fitting(text: str, width: float, points: float) -> float:
    """``points``, or the smaller size at which ``text`` fits into ``width`` inches."""
    return min(points, width / (_LETTER_WIDTH * max(len(text), 1)))
