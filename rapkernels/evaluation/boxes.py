"""A file of boxes: one object of each photo of a folder, with its class.

The file is JSON. ``boxes`` maps a photo's name, with or without its suffix, to its box; ``size`` is
that of every photo, and may be left out where they differ; what else there is, is ignored::

    {"size": [224, 224],
     "boxes": {"photo_1": {"box": [76, 40, 206, 224], "imagenet": 159, "object": "a dog"}}}

A box is [x0, y0, x1, y1] in pixels of the photo, origin top left; ``imagenet`` is the index of the
object's class among the network's outputs, and may be left out.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Box, EvaluationError


@dataclass(frozen=True)
class LabelledBox:
    """Where the object of a photo is, in the photo's pixels, and its class (None: not given)."""

    box: Box
    label: int | None


@dataclass(frozen=True)
class Boxes:
    """What a file of boxes says.

    Attributes:
        source: the file, for messages.
        size: (width, height) of every photo; None where it is not given.
        of: from a photo's name, as it stands in the file, to its box.
    """

    source: Path
    size: tuple[int, int] | None
    of: dict[str, LabelledBox]


def read_boxes(path: str | Path) -> Boxes:
    """Read a file of boxes.

    Raises:
        EvaluationError: no such file, not JSON, or not of the form above: a box that is empty,
            has not four numbers or reaches beyond ``size``; a label that is no index.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file of boxes.") from None
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise EvaluationError(f"{path}: not a JSON file ({error}).") from None
    entries = content.get("boxes") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise EvaluationError(
            f'{path}: an object "boxes" from the names of photos to their boxes is needed.'
        )
    size = _size(path, content.get("size"))
    return Boxes(
        path, size, {name: _labelled(path, name, entry, size) for name, entry in entries.items()}
    )


def check_box(where: str, box: Box, size: tuple[int, int]) -> None:
    """Raise EvaluationError unless a box lies in an image of ``size``, (width, height)."""
    x0, y0, x1, y1 = box
    if x0 < 0 or y0 < 0 or x1 > size[0] or y1 > size[1]:
        raise EvaluationError(
            f"{where}: the box must lie in the photo of {size[0]} x {size[1]} pixels, got "
            f"{[_short(value) for value in box]}."
        )


def _size(path: Path, size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(map(_is_index, size)):
        raise EvaluationError(f'{path}: "size" must be [width, height] in pixels, got {size!r}.')
    return (size[0], size[1])


def _labelled(path: Path, name: str, entry: Any, size: tuple[int, int] | None) -> LabelledBox:
    where = f"{path}, {name}"
    values = entry.get("box") if isinstance(entry, dict) else None
    if not isinstance(values, list) or len(values) != 4 or not all(map(_is_number, values)):
        raise EvaluationError(f'{where}: "box" must be four numbers [x0, y0, x1, y1].')
    x0, y0, x1, y1 = values
    if not (x0 < x1 and y0 < y1):
        raise EvaluationError(f"{where}: the box must have x0 < x1 and y0 < y1, got {values}.")
    box = (float(x0), float(y0), float(x1), float(y1))
    if size is not None:
        check_box(where, box, size)
    label = entry.get("imagenet")
    if label is not None and not _is_index(label):
        raise EvaluationError(f'{where}: "imagenet" must be the index of a class, got {label!r}.')
    return LabelledBox(box, label)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: float) -> float:
    return int(value) if value == int(value) else value
