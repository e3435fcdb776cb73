"""Small networks on sequences, volumes and tables, with the inputs they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


def normed(module: nn.Module, channels: int) -> nn.Module:
    """A normalisation with statistics and weights of its own."""
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1.0, 1.5, channels))
        module.bias.copy_(torch.linspace(-0.5, 0.5, channels))
        if hasattr(module, "running_mean"):
            module.running_mean.copy_(torch.linspace(-0.3, 0.3, channels))
            module.running_var.copy_(torch.linspace(0.5, 2.0, channels))
    return module


def waveform() -> nn.Module:
    """An M5 (Dai et al., 2016): raw audio to classes."""

    def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2)
        return [convolution, normed(nn.BatchNorm1d(outputs), outputs), nn.ReLU(), nn.MaxPool1d(2)]

    return nn.Sequential(
        *block(1, 4, 9, 4),
        *block(4, 4, 3),
        *block(4, 6, 3),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


class Causal(nn.Module):
    """A block of a TCN (Bai et al., 2018): dilated, causal, weight-normalised, residual."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        settings: dict[str, Any] = {"padding": self.cut, "dilation": dilation}
        self.first = weight_norm(nn.Conv1d(inputs, outputs, 3, **settings))
        self.second = weight_norm(nn.Conv1d(outputs, outputs, 3, **settings))
        self.drop = nn.Dropout(0.2)
        self.down = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(functional.relu(self.first(x)[:, :, : -self.cut]))
        y = self.drop(functional.relu(self.second(y)[:, :, : -self.cut]))
        return functional.relu(y + self.down(x))


class Temporal(nn.Module):
    """A TCN whose last step decides."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Causal(2, 4, 1), Causal(4, 4, 2))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[:, :, -1])


class Volume(nn.Module):
    """A residual network of factorised 3-d convolutions, as in R(2+1)D."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False)
        self.space = nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.norm = normed(nn.BatchNorm3d(6), 6)
        self.time = nn.Conv3d(6, 4, (3, 1, 1), padding=(1, 0, 0))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.stem(x))
        y = y + self.time(functional.relu(self.norm(self.space(y))))
        return self.head(
            functional.adaptive_avg_pool3d(self.pool(functional.relu(y)), 1).flatten(1)
        )


def table() -> nn.Module:
    """An MLP with its normalisations before, between and behind."""
    return nn.Sequential(
        normed(nn.BatchNorm1d(7), 7),
        nn.Linear(7, 8),
        normed(nn.BatchNorm1d(8), 8),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(8, 6),
        normed(nn.LayerNorm(6), 6),
        nn.GELU(),
        nn.Linear(6, 5),
    )


class ResidualTable(nn.Module):
    """A residual MLP (Gorishniy et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(7, 6)
        self.norms = nn.ModuleList(normed(nn.BatchNorm1d(6), 6) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(6, 9) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(9, 6) for _ in range(2))
        self.last = normed(nn.LayerNorm(6), 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(functional.dropout(functional.relu(up(norm(x))), 0.1, self.training))
        return self.head(functional.relu(self.last(x)))


# name -> what builds it, and the shape of a sample.
SHAPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "waveform": (waveform, (1, 64)),
    "temporal": (Temporal, (2, 12)),
    "volume": (Volume, (3, 4, 8, 8)),
    "table": (table, (7,)),
    "residual table": (ResidualTable, (7,)),
}
