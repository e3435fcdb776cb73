"""Writing matplotlib figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RapError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureError(RapError, ValueError):
    """A figure cannot be drawn or written; the message says why."""


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, or in the format that the file's suffix names.

    Raises:
        FigureError: the file cannot be written, or its suffix names no format.
    """
    path = Path(path)
    try:
        figure.savefig(path)
    except OSError as error:
        raise FigureError(f"{path}: cannot be written ({error.strerror or error}).") from None
    except ValueError as error:
        raise FigureError(f"{path}: cannot be written ({error}).") from None
