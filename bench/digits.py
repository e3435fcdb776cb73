"""Digits placed anywhere on textured backgrounds, and a small VGG that reads them.

The digits are scikit-learn's (8 x 8 pixels, 1797 of them), enlarged to several sizes and painted in
random colours on smooth random textures of 64 x 64 pixels. Where a digit is, is known exactly: its
box and its ink. All of it is drawn from a seed; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from rapkernels.evaluation import Case
from rapkernels.metrics import grid_masks

MaskKind = Literal["boxes", "ink", "cells"]
SIDE = 64
CLASSES = 10
# A digit's box is SMALLEST to LARGEST pixels wide and high.
SMALLEST, LARGEST = 16, 28
HELD_OUT = 397
_SPLIT_SEED = 0
_SOURCE_LEVELS = 16.0
# Ink lighter than this share of the darkest stroke does not count as the digit's.
_INK = 0.35
# Cells of the coarse noise under a texture, along a side.
_GRAINS = (4, 8, 16)
_MEAN, _STD = 0.5, 0.25


@dataclass(frozen=True)
class Digits:
    """Pictures of digits.

    Attributes:
        pixels: (N, 3, 64, 64) float32, normalised.
        labels: (N, D) int64, the digits of a picture; D is 1, or 4 for grids.
        boxes: (N, D, 64, 64) bool, the squares that they are painted in.
        ink: (N, D, 64, 64) bool, their strokes.
    """

    pixels: Tensor
    labels: Tensor
    boxes: Tensor
    ink: Tensor

    def cases(self, masks: MaskKind = "boxes") -> list[Case]:
        """A case for each picture; of D digits it explains number n mod D in picture n.

        Args:
            masks: what counts as the object: the digit's "boxes", its "ink", or the quarters of a
                grid, "cells".
        """
        kinds = {"boxes": self.boxes, "ink": self.ink}
        cells = grid_masks((SIDE, SIDE))
        found = []
        for index, (pixels, labels) in enumerate(zip(self.pixels, self.labels, strict=True)):
            place = index % len(labels)
            mask = cells[place] if masks == "cells" else kinds[masks][index, place]
            classes = tuple(int(label) for label in labels)
            found.append(Case(f"digits {index}", pixels, classes[place], mask, classes))
        return found


def make_digits(count: int, seed: int, held_out: bool = False) -> Digits:
    """Pictures with one digit each, anywhere, of several sizes.

    Args:
        count: how many pictures.
        seed: of everything that is drawn; training and held-out digits never mix.
        held_out: whether the digits are those that training does not see.
    """
    generator = np.random.default_rng([seed, int(held_out)])
    sources, labels = _sources(held_out)
    chosen = generator.integers(len(labels), size=(count, 1))
    sizes = generator.integers(SMALLEST, LARGEST + 1, size=(count, 1))
    corners = np.floor(generator.random((count, 1, 2)) * (SIDE + 1 - sizes[..., None])).astype(int)
    return _paint(sources, labels, chosen, sizes, corners, generator)


def make_grids(count: int, seed: int, held_out: bool = True) -> Digits:
    """Pictures with four different digits, one anywhere in each quarter (rows first).

    ``boxes`` are those of the digits; the quarters are ``rapkernels.metrics.grid_masks``.
    """
    generator = np.random.default_rng([seed, int(held_out), 4])
    sources, labels = _sources(held_out)
    by_class = [np.flatnonzero(labels == digit) for digit in range(CLASSES)]
    chosen = np.array(
        [
            [generator.choice(by_class[digit]) for digit in generator.permutation(CLASSES)[:4]]
            for _ in range(count)
        ]
    )
    cell = SIDE // 2
    sizes = generator.integers(SMALLEST, LARGEST + 1, size=(count, 4))
    corners = np.floor(generator.random((count, 4, 2)) * (cell + 1 - sizes[..., None])).astype(int)
    corners += cell * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    return _paint(sources, labels, chosen, sizes, corners, generator)


def small_vgg(seed: int = 0) -> nn.Module:
    """Blocks of 3x3 convolutions, a maximum of each channel over all places, a linear layer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((16, 1), (32, 2), (64, 2)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
    return nn.Sequential(*layers, *head)


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, and the share of 1000 held-out pictures that it reads correctly."""

    network: nn.Module
    accuracy: float


def train(
    seed: int = 0,
    steps: int = 450,
    batch: int = 48,
    tell: Callable[[str], None] | None = None,
) -> Trained:
    """Train :func:`small_vgg` on fresh pictures in every step.

    Args:
        seed: of the weights and of the pictures.
        steps: of Adam; the learning rate rises and falls once (one cycle).
        batch: pictures in a step.
        tell: is given a line of progress every hundred steps.
    """
    network = small_vgg(seed).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for step in range(steps):
        pictures = make_digits(batch, seed=1000 + seed * 1_000_000 + step)
        # Channels-last convolutions train twice as fast on a CPU.
        x = pictures.pixels.contiguous(memory_format=torch.channels_last)
        loss = cross_entropy(network(x), pictures.labels[:, 0])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if tell is not None and (step + 1) % 100 == 0:
            tell(f"step {step + 1} of {steps}: loss {loss.item():.3f}")
    network.eval().requires_grad_(False)
    return Trained(network, accuracy(network, make_digits(1000, seed=1, held_out=True)))


def accuracy(network: nn.Module, pictures: Digits) -> float:
    """The share of pictures whose digit gets the largest logit."""
    with torch.no_grad():
        found = torch.cat([network(part) for part in torch.split(pictures.pixels, 100)]).argmax(
            dim=1
        )
    return float((found == pictures.labels[:, 0]).double().mean())


@lru_cache(maxsize=2)
def _sources(held_out: bool) -> tuple[Tensor, np.ndarray]:
    """The digits (n, 1, 8, 8) in [0, 1] and their labels, of one side of a fixed split."""
    digits = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    part = order[:HELD_OUT] if held_out else order[HELD_OUT:]
    images = torch.from_numpy(digits.images[part] / _SOURCE_LEVELS).float()
    return images[:, None], digits.target[part]


def _paint(
    sources: Tensor,
    labels: np.ndarray,
    chosen: np.ndarray,
    sizes: np.ndarray,
    corners: np.ndarray,
    generator: np.random.Generator,
) -> Digits:
    count, digits = chosen.shape
    pixels = _textures(count, generator)
    boxes = torch.zeros(count, digits, SIDE, SIDE, dtype=torch.bool)
    ink = torch.zeros_like(boxes)
    for index in range(count):
        base = pixels[index].mean(dim=(1, 2))
        for place in range(digits):
            size = int(sizes[index, place])
            top, left = corners[index, place]
            window = (slice(top, top + size), slice(left, left + size))
            shape = interpolate(
                sources[chosen[index, place]][None], size=(size, size), mode="bicubic"
            )[0].clamp(0, 1)
            behind = pixels[index][:, window[0], window[1]]
            colour = _contrasting(base, generator)[:, None, None]
            behind.copy_(behind + shape * (colour - behind))
            boxes[index, place][window] = True
            ink[index, place][window] = shape[0] > _INK
    return Digits(
        (pixels - _MEAN) / _STD, torch.from_numpy(labels[chosen]).to(torch.int64), boxes, ink
    )


def _textures(count: int, generator: np.random.Generator) -> Tensor:
    """(N, 3, 64, 64) in [0, 1]: noise of several grains over a random mean colour."""
    textures = torch.from_numpy(generator.uniform(0.25, 0.75, (count, 3, 1, 1))).float()
    textures = textures.expand(count, 3, SIDE, SIDE).clone()
    for grain in _GRAINS:
        noise = torch.from_numpy(generator.standard_normal((count, 3, grain, grain))).float()
        strength = torch.from_numpy(generator.uniform(0.0, 0.12, (count, 1, 1, 1))).float()
        textures += strength * interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    return textures.clamp(0, 1)


def _contrasting(base: Tensor, generator: np.random.Generator) -> Tensor:
    """A colour (3,) that is far from ``base`` in brightness."""
    light = generator.random() < 0.5
    if base.mean() > 0.6:
        light = False
    elif base.mean() < 0.4:
        light = True
    low, high = (0.8, 1.0) if light else (0.0, 0.2)
    return torch.from_numpy(generator.uniform(low, high, 3)).float()
