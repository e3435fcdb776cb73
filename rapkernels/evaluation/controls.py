"""Controls: maps that know nothing of the network, to be beaten in every table.

Photographers put objects in the middle, so a map that is high in the middle scores well on any
metric of location. Lengths are shares of the image's shorter side.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError

DISC_RADIUS = 0.18
GAUSSIAN_SIGMA = 0.15
# From the middle to the rim the disc declines by this much: its maximum is a point, not a tie.
_DECLINE = 1e-3


class CentredDisc:
    """A disc in the middle of the image: 1 in its centre, 0.999 at its rim, 0 outside.

    Args:
        radius: of the disc, as a share of the shorter side; 0.18 is 40 of 224 pixels.

    Raises:
        ArgumentError: the radius is not positive.
    """

    def __init__(self, radius: float = DISC_RADIUS) -> None:
        _check_positive("radius", radius)
        self._radius = radius

    def __call__(self, x: Tensor, targets: Tensor, classes: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The same map (N, H, W) for each sample of ``x`` (N, C, H, W)."""
        distance = _distance_from_centre(x) / self._radius
        disc = (1.0 - _DECLINE * distance) * (distance <= 1.0)
        return disc.expand(x.shape[0], *disc.shape)


class CentredGaussian:
    """A Gaussian in the middle of the image, 1 in its centre.

    Args:
        sigma: standard deviation, as a share of the shorter side; 0.15 is 34 of 224 pixels.

    Raises:
        ArgumentError: sigma is not positive.
    """

    def __init__(self, sigma: float = GAUSSIAN_SIGMA) -> None:
        _check_positive("sigma", sigma)
        self._sigma = sigma

    def __call__(self, x: Tensor, targets: Tensor, classes: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The same map (N, H, W) for each sample of ``x`` (N, C, H, W)."""
        bell = torch.exp(-0.5 * (_distance_from_centre(x) / self._sigma) ** 2)
        return bell.expand(x.shape[0], *bell.shape)


class RandomMaps:
    """Each pixel uniform in [0, 1), independently.

    A map is a function of the image, the class and the seed: it does not depend on the batch, and
    two classes get unrelated maps.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def __call__(self, x: Tensor, targets: Tensor, classes: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Maps (N, H, W) for ``x`` (N, C, H, W) and targets (N,)."""
        maps = np.stack(
            [
                self._map(sample.numpy(), int(target))
                for sample, target in zip(x.detach().cpu(), targets.tolist(), strict=True)
            ]
        )
        return torch.from_numpy(maps).to(x.device)

    def _map(self, sample: np.ndarray, target: int) -> np.ndarray:
        content = zlib.crc32(np.ascontiguousarray(sample).tobytes())
        return np.random.default_rng([self._seed, content, target]).random(sample.shape[-2:])


def _distance_from_centre(x: Tensor) -> Tensor:
    """(H, W) float64: of each pixel's centre from the image's, in shares of the shorter side."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64, device=x.device) + 0.5 - height / 2
    columns = torch.arange(width, dtype=torch.float64, device=x.device) + 0.5 - width / 2
    return torch.hypot(rows[:, None], columns[None, :]) / min(height, width)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ArgumentError(f"{name} must be positive, got {value}")
