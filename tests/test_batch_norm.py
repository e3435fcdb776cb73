"""BatchNorms after convolutions: a network explains as the one whose weights hold them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import rapkernels as rk
from rapkernels.rules import conv as rules
from tests.explainers import WALKERS, explainer
from tests.networks import conv, images, seeded

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")

SCALES = {
    "positive": (0.3, 0.7, 1.1, 1.5),
    "mixed": (-0.8, 0.7, -1.1, 1.5),
    "negative": (-0.3, -0.7, -1.1, -1.5),
    "with zero": (0.3, 0.0, 1.1, 1.5),
    "absent": None,
}
# Weights that are scaled and sums that are scaled are rounded at different places, and quotients
# magnify that where the sums of a sign are small: 2e-15 and 1.2e-6 of the largest entry seen.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-5}


def _norm(scale: tuple[float, ...] | None) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(4, affine=scale is not None)
    with torch.no_grad():
        module.running_mean.copy_(torch.linspace(-0.3, 0.3, 4))
        module.running_var.copy_(torch.linspace(0.5, 2.0, 4))
        if scale is not None:
            module.weight.copy_(torch.tensor(scale))
            module.bias.copy_(torch.linspace(0.5, -0.1, 4))
    return module


def network(scale: str, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Convolutions with and without bias, with strides and groups, each before a BatchNorm."""

    def build() -> nn.Sequential:
        convolutions = (
            conv(3, stride=2),
            conv(bias=False),
            conv(kernel=1),
            conv(groups=4),
            conv(groups=2, bias=False),
        )
        blocks = [part for c in convolutions for part in (c, _norm(SCALES[scale]), nn.ReLU())]
        return nn.Sequential(*blocks, nn.Flatten(), nn.LazyLinear(3))

    def built() -> nn.Sequential:
        model = build()
        model(torch.zeros(2, 3, 12, 12))
        return model

    model = seeded(built, dtype)
    assert isinstance(model, nn.Sequential)
    return model


def fused(model: nn.Sequential) -> nn.Sequential:
    """The same with the BatchNorms in the weights."""
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            before = layers.pop()
            assert isinstance(before, nn.Conv2d)
            layers.append(fuse_conv_bn_eval(before, layer))
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def _input(dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    x = images(2, 12).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("method", WALKERS)
@pytest.mark.parametrize("scale", SCALES)
def test_relevance_is_that_of_folded_weights(scale: str, method: str, dtype: torch.dtype) -> None:
    model = network(scale, dtype)
    x = _input(dtype)
    found, expected = (
        explainer(method, each).attribute_targets(x, [0, 2]) for each in (model, fused(model))
    )
    largest = float(expected.abs().max())
    assert largest > 0
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype] * largest)


@pytest.mark.parametrize("scale", SCALES)
def test_relevance_of_layers_is_that_of_folded_weights(scale: str) -> None:
    model = network(scale)
    # A BatchNorm and its convolution are one layer.
    found = rk.RAP(model).attribute(_input(torch.float64), layers=["3", "5", "6"])[1]
    expected = rk.RAP(fused(model)).attribute(_input(torch.float64), layers=["2", "3", "4"])[1]
    for ours, theirs in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13 * float(theirs.abs().max()))


def _folds(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor, method: str) -> int:
    """How often a call multiplies weights by a scale."""
    folds = 0
    real = rules._folded_weight

    def folded(weight: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
        nonlocal folds
        folds += scale is not None
        return real(weight, scale, like)

    monkeypatch.setattr(rules, "_folded_weight", folded)
    made: Any = explainer(method, model)
    made.attribute(x)
    return folds


@pytest.mark.cpu_only
@pytest.mark.parametrize("scale", SCALES)
def test_rap_leaves_positive_scales_out_of_the_weights(
    scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = _folds(monkeypatch, network(scale), _input(torch.float64), "rap")
    # The input layer keeps no sums, and folds on both ways; the four others do where a sign counts.
    assert folds == (2 if scale in ("positive", "absent") else 10)


@pytest.mark.cpu_only
def test_rules_with_bias_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("positive")
    assert _folds(monkeypatch, model, _input(torch.float64), "EpsilonPlus") == 10


@pytest.mark.cpu_only
def test_half_types_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("positive", torch.bfloat16)
    assert _folds(monkeypatch, model, _input(torch.bfloat16), "rap") == 10


def test_a_scale_that_changes_its_sign_between_calls_counts() -> None:
    model = network("positive")
    x = _input(torch.float64)
    made = rk.RAP(model)
    made.attribute(x)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                module.weight[1].neg_()
    expected = rk.RAP(fused(model)).attribute(x)
    found = made.attribute(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))
