"""The convolutions that are measured one by one, in order of worth."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.gpu.plan import NETWORKS
from bench.limits import GPU_LIMITS
from bench.shapes import LayerShape

PRECISIONS = ("bfloat16", "tf32", "float32")
SIZE = 224


@dataclass(frozen=True)
class FusedLayer:
    """A convolution of a network at a precision."""

    shape: LayerShape
    precision: str

    @property
    def key(self) -> str:
        """What tells the layer from all others."""
        return f"{self.shape.name}/{self.precision}"


def fused_layers() -> list[FusedLayer]:
    """Each shape of both networks once, all of them in bfloat16 first."""
    shapes = [shape for network in NETWORKS for shape in conv_shapes(network)]
    return [FusedLayer(shape, precision) for precision in PRECISIONS for shape in shapes]


def tiny_layers() -> list[FusedLayer]:
    """The first layers, of a size that a CPU does at once, to try the harness."""
    few = [shape for network in NETWORKS for shape in list(conv_shapes(network))[:2]]
    return [
        FusedLayer(replace(s, x=(4, 8, 9, 9), weight=(16, 8, *s.weight[2:])), "float32")
        for s in few
    ]


def conv_shapes(network: str) -> Iterator[LayerShape]:
    """The convolutions of one of torchvision's networks but the first, which has the z-box rule.

    Of several that are alike the first.
    """
    with torch.device("meta"):
        model = getattr(importlib.import_module("torchvision.models"), network)(weights=None).eval()
        image = torch.empty(GPU_LIMITS.batch, 3, SIZE, SIZE)
    found: dict[tuple[object, ...], LayerShape] = {}
    handles = [
        module.register_forward_hook(_record(f"{network}.{name}", NETWORKS[network], found))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    model(image)
    for handle in handles:
        handle.remove()
    yield from list(found.values())[1:]


def _record(name: str, network: str, found: dict[tuple[object, ...], LayerShape]):  # type: ignore[no-untyped-def]
    def hook(module: nn.Conv2d, inputs: tuple[Tensor], _output: Tensor) -> None:
        x, weight = tuple(inputs[0].shape), tuple(module.weight.shape)
        stride, padding = module.stride[0], int(module.padding[0])
        shape = LayerShape(
            name, network, "relprop_conv", x, weight, (), 1, stride, padding, module.groups
        )
        found.setdefault((x, weight, stride, padding, module.groups), shape)

    return hook
