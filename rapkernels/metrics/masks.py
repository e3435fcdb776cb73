"""Masks of objects: from bool tensors, from boxes, from the cells of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rapkernels.errors import ArgumentError, ArgumentTypeError

Boxes = Tensor | Sequence[Sequence[float]]
Masks = Tensor | Sequence[Sequence[float]]


def box_masks(boxes: Boxes, size: Sequence[int]) -> Tensor:
    """The masks of one box per sample.

    A pixel is inside where its centre is: ``x0 <= column + 0.5 < x1`` and
    ``y0 <= row + 0.5 < y1``. A box of whole numbers so holds columns ``x0 .. x1 - 1`` and rows
    ``y0 .. y1 - 1``, and ``[0, 0, W, H]`` is the whole image.

    Args:
        boxes: ``(N, 4)``, ``[x0, y0, x1, y1]`` in pixels, the origin top left: a tensor of numbers
            or a list of lists.
        size: ``(H, W)`` of the image.

    Returns:
        ``(N, H, W)``, bool, on the device of ``boxes``.

    Raises:
        ArgumentTypeError: boxes are not numbers, or the size is not two ints.
        ArgumentError: boxes have another shape, reach out of the image, have no extent or hold no
            pixel's centre; or the size is not positive.
    """
    height, width = _checked_size(size, 1)
    corners = _checked_boxes(boxes)
    x0, y0, x1, y1 = corners.unbind(1)
    valid = (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
    if not bool(valid.all()):
        sample = int((~valid).int().argmax())
        raise ArgumentError(
            f"boxes must be [x0, y0, x1, y1] with 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= "
            f"{height}, got {corners[sample].tolist()} for sample {sample}"
        )
    columns = torch.arange(width, device=corners.device) + 0.5
    rows = torch.arange(height, device=corners.device) + 0.5
    across = (x0[:, None] <= columns) & (columns < x1[:, None])
    down = (y0[:, None] <= rows) & (rows < y1[:, None])
    masks = down[:, :, None] & across[:, None, :]
    held = masks.flatten(1).any(1)
    if not bool(held.all()):
        sample = int((~held).int().argmax())
        raise ArgumentError(
            f"boxes must hold the centre of at least one pixel, got {corners[sample].tolist()} "
            f"for sample {sample}"
        )
    return masks


def grid_masks(size: Sequence[int]) -> Tensor:
    """The masks of the four cells of a 2x2 grid, which together cover the image once.

    ``grid_masks((H, W))[cells]`` with ``cells`` an int tensor ``(N,)`` are the masks of N grids.

    Args:
        size: ``(H, W)``. Where one is odd, its middle line belongs to the second cells.

    Returns:
        ``(4, H, W)``, bool, on torch's default device; row by row: top left, top right, bottom
        left, bottom right.

    Raises:
        ArgumentTypeError: the size is not two ints.
        ArgumentError: a side is below 2.
    """
    height, width = _checked_size(size, 2)
    bottom = (torch.arange(height) >= height // 2)[:, None].expand(height, width)
    right = (torch.arange(width) >= width // 2).expand(height, width)
    return torch.stack([~bottom & ~right, ~bottom & right, bottom & ~right, bottom & right])


def checked_masks(masks: Any, maps: Tensor) -> Tensor:
    """Masks or boxes as masks of the shape and on the device of ``maps``.

    Raises:
        ArgumentTypeError: neither a bool tensor nor boxes.
        ArgumentError: another shape, an empty mask, or boxes that :func:`box_masks` refuses.
    """
    if isinstance(masks, Tensor) and (masks.dtype == torch.bool or masks.dim() == 3):
        if masks.dtype != torch.bool:
            raise ArgumentTypeError(
                "masks must be a bool tensor (N, H, W) or boxes (N, 4), got dtype "
                f"{str(masks.dtype).removeprefix('torch.')}: convert it with masks.bool()"
            )
        if masks.shape != maps.shape:
            raise ArgumentError(
                f"masks must have the shape of the maps, {list(maps.shape)}, got shape "
                f"{list(masks.shape)}"
            )
    else:
        masks = box_masks(masks, maps.shape[1:])
        if masks.shape[0] != maps.shape[0]:
            raise ArgumentError(
                f"boxes must be one per sample, {maps.shape[0]}, got {masks.shape[0]}"
            )
    inside: Tensor = masks.to(maps.device)
    held = inside.flatten(1).any(1)
    if not bool(held.all()):
        sample = int((~held).int().argmax())
        raise ArgumentError(
            f"masks must hold at least one pixel each, got an empty mask for sample {sample}"
        )
    return inside


def _checked_size(size: Any, least: int) -> tuple[int, int]:
    if (
        not isinstance(size, tuple | list)
        or len(size) != 2
        or not all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    ):
        raise ArgumentTypeError(f"size must be two ints (H, W), got {size!r}")
    if min(size) < least:
        raise ArgumentError(f"size must be at least {least} in H and W, got {tuple(size)}")
    return size[0], size[1]


def _checked_boxes(boxes: Any) -> Tensor:
    form = "one [x0, y0, x1, y1] per sample, a list of lists of numbers or a tensor (N, 4)"
    if isinstance(boxes, list | tuple):
        try:
            boxes = torch.tensor(boxes, dtype=torch.float64) if boxes else torch.zeros(0, 4)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"boxes must be {form}, got {boxes!r}") from error
    if not isinstance(boxes, Tensor) or boxes.dtype == torch.bool or boxes.is_complex():
        got = f"dtype {boxes.dtype}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise ArgumentTypeError(f"boxes must be {form}, got {got}")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ArgumentError(f"boxes must be {form}, got shape {list(boxes.shape)}")
    return boxes.detach().double()
