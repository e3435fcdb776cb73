"""The LRP rules equal zennit's on networks of torchvision's shapes, in float64.

zennit runs with its canonizers for VGG and ResNet and starts from a one at the target. Agreement is
to 1e-5 of the largest entry; what is left are its separate sums of the same terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk

torchvision = pytest.importorskip("torchvision")
zennit_composites = pytest.importorskip("zennit.composites")
from torchvision.models import resnet, vgg  # noqa: E402
from zennit.attribution import Gradient  # noqa: E402
from zennit.rules import Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus  # noqa: E402
from zennit.torchvision import ResNetCanonizer, VGGCanonizer  # noqa: E402

EPSILON = 1e-6
LOW, HIGH = -4.0, 4.0


class SmallResNet(resnet.ResNet):
    """A ResNet of torchvision's blocks, an eighth as wide."""

    def _make_layer(
        self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        if planes == 64:
            self.inplanes = 8
        return super()._make_layer(block, planes // 8, blocks, stride, dilate)


def small_vgg(batch_norm: bool) -> nn.Module:
    plan = [8, "M", 16, "M", 16, 24, "M"]
    model = vgg.VGG(vgg.make_layers(plan, batch_norm), num_classes=10)
    model.classifier = nn.Sequential(
        nn.Linear(24 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10)
    )
    return model


def small_resnet(block: Any) -> nn.Module:
    model = SmallResNet(block, [2, 1, 1, 1], num_classes=10)
    model.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    model.bn1 = nn.BatchNorm2d(8)
    model.fc = nn.Linear(64 * block.expansion, 10)
    return model


def wide_vgg() -> nn.Module:
    model = torchvision.models.vgg16_bn(num_classes=10)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 10))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: small_vgg(False),
    "vgg_bn": lambda: small_vgg(True),
    "resnet basic": lambda: small_resnet(resnet.BasicBlock),
    "resnet bottleneck": lambda: small_resnet(resnet.Bottleneck),
    "vgg16_bn features": wide_vgg,
    "resnet50": lambda: torchvision.models.resnet50(num_classes=10),
}

BOX = {"low": torch.tensor(LOW), "high": torch.tensor(HIGH)}
COMPOSITES: dict[str, tuple[Any, dict[str, Any]]] = {
    "EpsilonPlus": (rk.composites.EpsilonPlus(), {}),
    "EpsilonPlusFlat": (rk.composites.EpsilonPlusFlat(), {}),
    "EpsilonAlpha2Beta1": (rk.composites.EpsilonAlpha2Beta1(), {}),
    "EpsilonAlpha2Beta1Flat": (rk.composites.EpsilonAlpha2Beta1Flat(), {}),
    "EpsilonGammaBox": (rk.composites.EpsilonGammaBox(LOW, HIGH), BOX),
}
SMALL = ["vgg", "vgg_bn", "resnet basic", "resnet bottleneck"]


def build(name: str) -> nn.Module:
    torch.manual_seed(7)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.eps = 1e-12
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    return model.double().eval()


def photos(batch: int = 2, size: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)


def by_zennit(model: nn.Module, x: Tensor, target: list[int], composite: Any) -> Tensor:
    def one_hot(output: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(target), output.shape[1]).to(output)

    with Gradient(model, composite) as attributor:
        relevance: Tensor = attributor(x.clone(), one_hot)[1]
    return relevance


def canonizers(name: str) -> list[Any]:
    return [ResNetCanonizer() if "resnet" in name else VGGCanonizer()]


def check(name: str, ours: Any, theirs: Any, backend: Any) -> None:
    model, x, target = build(name), photos(), [3, 7]
    expected = by_zennit(model, x, target, theirs)
    relevance = rk.LRP(model, ours, backend).attribute(x, target, output_relevance="ones")
    error = (relevance - expected).abs().amax() / expected.abs().amax()
    assert float(error) < 1e-5


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", SMALL)
def test_composites(name: str, composite: str, backend: Any) -> None:
    ours, options = COMPOSITES[composite]
    theirs = getattr(zennit_composites, composite)(canonizers=canonizers(name), **options)
    check(name, ours, theirs, backend)


@pytest.mark.parametrize("composite", ["EpsilonPlusFlat", "EpsilonAlpha2Beta1"])
@pytest.mark.parametrize("name", ["vgg16_bn features", "resnet50"])
def test_at_full_width(name: str, composite: str) -> None:
    ours, options = COMPOSITES[composite]
    theirs = getattr(zennit_composites, composite)(canonizers=canonizers(name), **options)
    check(name, ours, theirs, "auto")


RULES: dict[str, tuple[rk.composites.LayerRule, Any]] = {
    "epsilon": (rk.composites.Epsilon(0.1), Epsilon(0.1)),
    "epsilon without bias": (
        rk.composites.Epsilon(0.1, bias=False),
        Epsilon(0.1, zero_params="bias"),
    ),
    "gamma": (rk.composites.Gamma(0.5), Gamma(0.5)),
    "z_plus": (rk.composites.ZPlus(), ZPlus()),
    "z_plus without bias": (rk.composites.ZPlus(bias=False), ZPlus(zero_params="bias")),
    "w_square": (rk.composites.WSquare(), WSquare()),
    "flat": (rk.composites.Flat(), Flat()),
    "z_box": (rk.composites.ZBox(LOW, HIGH), ZBox(**BOX)),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_everywhere(rule: str, backend: Any) -> None:
    """One rule in all layers, inner ones with inputs of both signs too."""
    from zennit.composites import LayerMapComposite
    from zennit.rules import Norm, Pass
    from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

    ours, theirs = RULES[rule]
    layers = [
        (Activation, Pass()),
        (AvgPool, Norm()),
        (BatchNorm, Pass()),
        (Convolution, theirs),
        (Linear, theirs),
    ]
    composite = LayerMapComposite(layers, canonizers=canonizers("vgg"))
    check("vgg_bn", rk.composites.Composite(ours, ours), composite, backend)
