"""Prediction from activation patterns: the patterns of one input, the values of another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError, UnsupportedOperationError
from tests.networks import NETWORKS, Function, conv, images, network, norm, seeded


def test_by_hand() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(torch.relu(m.bn(m.a(x))), 2)
        return m.fc(nn.functional.relu6(m.b(y) * 30).mean((2, 3)))

    model: Any = seeded(lambda: Function(run, a=conv(3), bn=norm(), b=conv(), fc=nn.Linear(4, 5)))
    x, ones = images(), torch.ones(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        z, probe = model.bn(model.a(x)), model.bn(model.a(ones))
        y, probe = torch.relu(z), probe * (z > 0)
        windows, probe = (v.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4) for v in (y, probe))
        winner = windows.argmax(-1, keepdim=True)
        y, probe = (v.gather(-1, winner)[..., 0] for v in (windows, probe))
        z, probe = model.b(y) * 30, model.b(probe) * 30
        assert bool((z > 6).any())
        probe = probe * (z > 0) * torch.where(z > 6, 6 / z, 1)
        expected = model.fc(probe.mean((2, 3)))
    torch.testing.assert_close(rk.activation_pattern_prediction(model, x), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_of_a_constant_input_it_is_the_model(name: str) -> None:
    """The pattern of an input gives back what the model says of it."""
    model, x = network(name), torch.full((2, 3, 6, 6), 1.0, dtype=torch.float64)
    torch.testing.assert_close(rk.activation_pattern_prediction(model, x), model(x).detach())


def test_a_batch_and_an_empty_one() -> None:
    model, x = network("residual"), images(3)
    together = rk.activation_pattern_prediction(model, x)
    for n in range(3):
        alone = rk.activation_pattern_prediction(model, x[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone)
    assert rk.activation_pattern_prediction(model, x[:0]).shape == (0, 5)


def test_errors() -> None:
    model, x = network("residual"), images()
    with pytest.raises(ArgumentTypeError, match="constant must be a number, got str"):
        rk.activation_pattern_prediction(model, x, "1")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="x must be finite"):
        rk.activation_pattern_prediction(model, x / 0)
    with pytest.raises(UnsupportedOperationError, match=r"aten\.sin"):
        rk.activation_pattern_prediction(seeded(lambda: Function(lambda _, x: torch.sin(x))), x)


# What is run, and the same with the pattern of x in its place, for a value y and a probe p.
GATED: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor, Tensor], Tensor]]]
GATED = {
    "gelu": (lambda _, y: functional.gelu(y), lambda _, y, p: p * functional.gelu(y) / y),
    "silu by hand": (lambda _, y: y * torch.sigmoid(y), lambda _, y, p: p * torch.sigmoid(y)),
    "softplus": (
        lambda _, y: functional.softplus(y),
        lambda _, y, p: math.log(2) + p * (functional.softplus(y) - math.log(2)) / y,
    ),
    "squeeze and excitation": (
        lambda m, y: y * torch.sigmoid(m.gate(y.mean((2, 3)))).view(-1, 4, 1, 1),
        lambda m, y, p: p * torch.sigmoid(m.gate(y.mean((2, 3)))).view(-1, 4, 1, 1),
    ),
    "attention": (
        lambda _, y: functional.scaled_dot_product_attention(y, y * 2, y.tanh()),
        lambda _, y, p: torch.softmax(y @ y.mT * 2 / 6**0.5, -1) @ (p * y.tanh() / y),
    ),
    "layer norm": (
        lambda m, y: m.norm(y),
        lambda m, y, p: (
            (p - y.mean(-1, True))
            / (y.var(-1, correction=0, keepdim=True) + m.norm.eps).sqrt()
            * m.norm.weight
            + m.norm.bias
        ),
    ),
    "group norm": (
        lambda m, y: functional.group_norm(y, 2, m.gate.weight[0], m.gate.bias),
        lambda m, y, p: (
            (
                (p.view(2, 2, -1) - y.view(2, 2, -1).mean(-1, True))
                / (y.view(2, 2, -1).var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            ).view(y.shape)
            * m.gate.weight[0].view(4, 1, 1)
            + m.gate.bias.view(4, 1, 1)
        ),
    ),
    "instance norm": (
        lambda _, y: functional.instance_norm(y),
        lambda _, y, p: (
            (p - y.mean((2, 3), True)) / (y.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        ),
    ),
    "rms norm": (
        lambda _, y: functional.rms_norm(y, (6,)),
        lambda _, y, p: p / (y.square().mean(-1, True) + torch.finfo(y.dtype).eps).sqrt(),
    ),
}


@pytest.mark.parametrize("name", GATED)
def test_what_is_constant_to_relevance_is_part_of_the_pattern(name: str) -> None:
    run, patterned = GATED[name]
    layers: dict[str, nn.Module] = {"a": conv(3), "gate": nn.Linear(4, 4), "norm": nn.LayerNorm(6)}
    model: Any = seeded(
        lambda: Function(
            lambda m, x: m.fc(run(m, m.a(x)).flatten(1)), **layers, fc=nn.Linear(144, 5)
        )
    )
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    x = images()
    with torch.no_grad():
        probe = patterned(model, model.a(x), model.a(torch.ones_like(x)))
        expected = model.fc(probe.flatten(1))
    torch.testing.assert_close(rk.activation_pattern_prediction(model, x), expected)


def test_slopes_near_0_in_float32() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Softplus()), torch.float32)
    x = torch.full((1, 4), 1e-9)
    found = rk.activation_pattern_prediction(model, x)
    torch.testing.assert_close(found, torch.full((1, 4), math.log(2) + 0.5))


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "softmax": (lambda _, y: torch.softmax(y, 1), "a softmax that is no attention"),
    "product": (lambda _, y: y @ y.mT, "neither is the weights of attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_pattern_is_refused(name: str) -> None:
    run, message = REFUSED[name]
    model = seeded(
        lambda: Function(
            lambda m, x: m.fc(run(m, m.a(x)).mean((2, 3))), a=conv(3), fc=nn.Linear(4, 5)
        )
    )
    with pytest.raises(UnsupportedOperationError, match=message):
        rk.activation_pattern_prediction(model, images())
