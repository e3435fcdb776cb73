"""What is evaluated: inputs of a network with the class to explain and where its object is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RapError

Box = tuple[float, float, float, float]


class EvaluationError(RapError, ValueError):
    """An evaluation cannot be set up; the message says which file or argument, and why."""


@dataclass(frozen=True)
class Case:
    """One input of a network.

    Attributes:
        name: what it is called in messages, such as a file's name.
        pixels: (C, H, W), the network's input, prepared.
        target: index of the class to explain; None for the predicted class.
        mask: (H, W) bool, where the object of that class is; None where that is not known.
        classes: all classes that are shown, ``target`` among them; () where that is not known.
            Methods that compare classes (VAR) take them as their class set.
    """

    name: str
    pixels: Tensor
    target: int | None = None
    mask: Tensor | None = None
    classes: tuple[int, ...] = ()


Cases = Sequence[Case]


def box_mask(box: Box, size: tuple[int, int]) -> Tensor:
    """The pixels whose centres lie in a box.

    Args:
        box: (x0, y0, x1, y1) in pixels, origin top left; it may reach beyond the image.
        size: (H, W) of the mask.

    Returns:
        (H, W) bool; empty (no True) where the box misses the image.
    """
    x0, y0, x1, y1 = box
    rows = torch.arange(size[0], dtype=torch.float64, device="cpu") + 0.5
    columns = torch.arange(size[1], dtype=torch.float64, device="cpu") + 0.5
    within = (rows >= y0) & (rows < y1)
    return within[:, None] & ((columns >= x0) & (columns < x1))[None, :]


def mask_bounds(mask: Tensor) -> tuple[int, int, int, int]:
    """The smallest (left, top, right, bottom) that holds all of a mask (H, W), which has some."""
    rows = mask.any(dim=1).nonzero()[:, 0]
    columns = mask.any(dim=0).nonzero()[:, 0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
