"""Prediction from activation patterns: the patterns of one input, the values of another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError, UnsupportedOperationError
from tests.networks import MODERN, NETWORKS, Function, conv, images, network, norm, seeded


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


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(MODERN)))
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
