"""Whole networks against the RAP authors' published code (float64 files in tests/golden)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk

GOLDEN = Path(__file__).parent / "golden"


class Vgg(nn.Module):
    """Four convolutions and three linear layers, with torchvision's parameter names."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (8, None, 12, 12, None, 16, None):
            if width is None:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if normalised:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(
            nn.Linear(256, 24),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(24, 24),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(24, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Bottlenecks of width 4, 4, 8, 8, 8, 16, with torchvision's parameter names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Bottleneck(8, 4, 1), Bottleneck(16, 4, 1))
        self.layer2 = nn.Sequential(Bottleneck(16, 8, 2), Bottleneck(32, 8, 1))
        self.layer3 = nn.Sequential(Bottleneck(32, 8, 2))
        self.layer4 = nn.Sequential(Bottleneck(32, 16, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "rap_net_vgg": lambda: Vgg(normalised=False),
    "rap_net_vgg_bn": lambda: Vgg(normalised=True),
    "rap_net_resnet": ResNet,
}
CASES = [
    ("rap_net_vgg", "default"),
    ("rap_net_vgg_bn", "default"),
    ("rap_net_vgg", "author"),
    ("rap_net_vgg_bn", "author"),
    ("rap_net_resnet", "author"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_equals_the_authors_code(name: str, variant: Any, dtype: torch.dtype, backend: Any) -> None:
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = {key: torch.as_tensor(file[key]) for key in file.files}
    model = NETWORKS[name]().double()
    state = {key[6:]: value for key, value in golden.items() if key.startswith("param.")}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    model.to(dtype).eval()
    relevance, report = rk.RAP(model, variant, backend=backend).attribute(
        golden["x"].to(dtype), golden["target"], return_report=True
    )
    score = golden["logits"].gather(1, golden["target"][:, None])[:, 0].cpu()
    torch.testing.assert_close(report.score.double(), score, rtol=1e-5, atol=0)
    expected = golden["R_in"]
    error = float((relevance.double() - expected).abs().max() / expected.abs().max())
    if dtype == torch.float64:
        assert error < 1e-9
    elif name == "rap_net_resnet":
        # The ratio add is ill-conditioned: the authors' code in float32 is 3.1e-3 off itself.
        assert error < 5e-3
    else:
        assert error < 1e-4
