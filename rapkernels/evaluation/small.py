"""Small objects away from the middle: what photographs seldom show, and centred maps miss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from typing_extensions import override

from ..errors import ArgumentError
from .cases import Case, Cases, EvaluationError, mask_bounds

Background = Literal["texture", "blur"]
BACKGROUNDS: tuple[Background, ...] = ("texture", "blur")
SHARE = 0.4
# The object's centre is at least this share of the shorter side away from the image's.
CLEARANCE = 0.25
_BLUR_CELLS = 4
_GRAIN = 8


class SmallObjectCases(Sequence[Case]):
    """The box of each case, shrunk and pasted off the centre of a background.

    The object is the smallest box around the case's mask, or the whole image where it has none; its
    longer side becomes ``share`` of the image's shorter side (it is enlarged where it is smaller).
    It lies at a position that is uniform among those where all of it is in the image and its
    centre is at least a quarter of the shorter side away from the image's. ``mask`` is the pasted
    box, which has corners of the old background too.

    Args:
        cases: the objects.
        per_case: how many are made of each.
        seed: of positions and textures.
        share: of the shorter side.
        background: "texture", smooth noise with the mean and spread of the case's colours, or
            "blur", the case itself blurred beyond recognition.

    Raises:
        ArgumentError: ``share`` is not between 0 and 1, or ``background`` is not known.
    """

    def __init__(
        self,
        cases: Cases,
        per_case: int = 1,
        seed: int = 0,
        share: float = SHARE,
        background: Background = "blur",
    ) -> None:
        if not 0 < share < 1:
            raise ArgumentError(f"share must be between 0 and 1, got {share}")
        if background not in BACKGROUNDS:
            raise ArgumentError(
                f"background must be one of {', '.join(BACKGROUNDS)}, got {background!r}"
            )
        self._cases = cases
        self._per_case = per_case
        self._seed = seed
        self._share = share
        self._background = background

    @override
    def __len__(self) -> int:
        return len(self._cases) * self._per_case

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    @override
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        places = range(len(self))[index]
        return self._make(places) if isinstance(places, int) else [self._make(p) for p in places]

    def _make(self, place: int) -> Case:
        case = self._cases[place // self._per_case]
        # A generator for each place: a case is the same whatever has been asked for before.
        generator = np.random.default_rng([self._seed, place])
        behind = _texture(case.pixels, generator) if self._background == "texture" else None
        pixels = _blurred(case.pixels) if behind is None else behind
        object_ = _shrunk_object(case, self._share)
        height, width = object_.shape[-2:]
        top, left = off_centre_position(
            (pixels.shape[-2], pixels.shape[-1]), (height, width), generator
        )
        pixels[:, top : top + height, left : left + width] = object_
        mask = torch.zeros(pixels.shape[-2:], dtype=torch.bool, device="cpu")
        mask[top : top + height, left : left + width] = True
        return Case(f"small {case.name}", pixels, case.target, mask, case.classes)


def off_centre_position(
    size: tuple[int, int], object_size: tuple[int, int], generator: np.random.Generator
) -> tuple[int, int]:
    """(top, left) of an object (h, w) in an image (H, W), its centre off the image's.

    Raises:
        EvaluationError: the object is too large for any such position.
    """
    spare = [whole - part for whole, part in zip(size, object_size, strict=True)]
    if min(spare) < 0:
        raise EvaluationError(f"an object of {object_size} does not fit into an image of {size}.")
    down, across = (np.arange(rest + 1) - rest / 2 for rest in spare)
    allowed = np.argwhere(np.hypot(down[:, None], across[None, :]) >= CLEARANCE * min(size))
    if not len(allowed):
        raise EvaluationError(
            f"an object of {object_size} has no place off the centre of an image of {size}."
        )
    top, left = allowed[generator.integers(len(allowed))]
    return int(top), int(left)


def _shrunk_object(case: Case, share: float) -> Tensor:
    pixels = case.pixels
    shorter = min(pixels.shape[-2:])
    if case.mask is not None:
        left, top, right, bottom = mask_bounds(case.mask)
        pixels = pixels[:, top:bottom, left:right]
    height, width = pixels.shape[-2:]
    scale = share * shorter / max(height, width)
    return interpolate(
        pixels[None],
        size=(max(1, round(height * scale)), max(1, round(width * scale))),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )[0]


def _texture(pixels: Tensor, generator: np.random.Generator) -> Tensor:
    """Noise of an eighth of the resolution, smooth, in the colours that the image has."""
    channels, height, width = pixels.shape
    coarse = generator.standard_normal(
        (1, channels, -(-height // _GRAIN) + 1, -(-width // _GRAIN) + 1)
    )
    noise = _enlarge(torch.from_numpy(coarse).to(pixels.dtype), (height, width))[0]
    noise = noise / noise.std(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    mean = pixels.mean(dim=(1, 2), keepdim=True)
    spread = pixels.std(dim=(1, 2), keepdim=True)
    low, high = pixels.amin(dim=(1, 2), keepdim=True), pixels.amax(dim=(1, 2), keepdim=True)
    return (mean + spread * noise).clamp(low, high)


def _blurred(pixels: Tensor) -> Tensor:
    """Means over 4 x 4 parts of the image, joined smoothly."""
    means = adaptive_avg_pool2d(pixels[None], _BLUR_CELLS)
    return _enlarge(means, (pixels.shape[-2], pixels.shape[-1]))[0]


def _enlarge(images: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(images, size=size, mode="bilinear", align_corners=False)
