"""2x2 grids of four cases of different classes: which cell is a class's?

A map that follows the image alone, whatever the class, finds a quarter of its relevance in the
asked cell. The form is that of Quad-ImageNet (Xu et al., arXiv 2503.07346: four images at half
size) and of the grid pointing game; here the four classes always differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import override

from ..metrics import grid_masks
from .cases import Case, Cases, EvaluationError

CELLS = 4
# How often a grid that has come before is drawn again.
_TRIES = 1000


class GridCases(Sequence[Case]):
    """Grids of a seeded choice of cases, no two with the same cases in the same cells.

    Grid number g explains the class of its cell g mod 4 (rows first), so that every cell is asked
    for equally often. ``mask`` is that cell, ``classes`` are those of the four cells, in order.

    Args:
        cases: with targets, of at least four classes and all of one shape.
        count: how many grids.
        seed: of the choice.

    Raises:
        EvaluationError: a case has no target, there are fewer than four classes, or fewer than
            ``count`` grids.
    """

    def __init__(self, cases: Cases, count: int, seed: int = 0) -> None:
        self._cases = cases
        by_class: defaultdict[int, list[int]] = defaultdict(list)
        for index, case in enumerate(cases):
            if case.target is None:
                raise EvaluationError(f"grids need a class for each image, got none: {case.name}.")
            by_class[case.target].append(index)
        self._grids = choose_grids(list(by_class.values()), count, seed)

    @override
    def __len__(self) -> int:
        return len(self._grids)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    @override
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        places = range(len(self._grids))[index]
        return self._make(places) if isinstance(places, int) else [self._make(p) for p in places]

    def _make(self, place: int) -> Case:
        parts = [self._cases[index] for index in self._grids[place]]
        classes = tuple(part.target for part in parts if part.target is not None)
        asked = place % CELLS
        pixels = tile([part.pixels for part in parts])
        return Case(
            name="grid of " + ", ".join(part.name for part in parts),
            pixels=pixels,
            target=classes[asked],
            mask=grid_masks((pixels.shape[-2], pixels.shape[-1]))[asked],
            classes=classes,
        )


def choose_grids(groups: Sequence[Sequence[int]], count: int, seed: int) -> list[tuple[int, ...]]:
    """Draw ``count`` different tuples of four indices, each from a group of its own.

    Args:
        groups: indices of the cases of each class.
        count: how many tuples.
        seed: same seed, same tuples.

    Raises:
        EvaluationError: fewer than four groups, or not as many different tuples.
    """
    if len(groups) < CELLS:
        raise EvaluationError(f"grids need images of at least 4 classes, got {len(groups)}.")
    generator = np.random.default_rng(seed)
    chosen: dict[tuple[int, ...], None] = {}
    for _ in range(count):
        for _ in range(_TRIES):
            picked = generator.choice(len(groups), size=CELLS, replace=False)
            grid = tuple(int(generator.choice(groups[group])) for group in picked)
            if grid not in chosen:
                chosen[grid] = None
                break
        else:
            raise EvaluationError(f"{count} different grids cannot be made of these images.")
    return list(chosen)


def tile(images: Sequence[Tensor]) -> Tensor:
    """Four images (C, H, W), each shrunk to half its size, as one image (C, H, W), rows first.

    Shrinking is bilinear with antialiasing. Where a side is odd, the second half is the larger.
    """
    height, width = images[0].shape[-2:]
    rows, columns = (height // 2, height - height // 2), (width // 2, width - width // 2)
    cells = [
        interpolate(
            image[None],
            size=(rows[place // 2], columns[place % 2]),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )[0]
        for place, image in enumerate(images)
    ]
    return torch.cat([torch.cat(cells[:2], dim=2), torch.cat(cells[2:], dim=2)], dim=1)
