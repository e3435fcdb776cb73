"""Modules that are more than their layers: reparametrised, tied, wrapped, packed, changed later."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import rapkernels as rk
from rapkernels import errors
from tests.networks import images, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def plain() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
        )
    )


def explained(model: nn.Module) -> Tensor:
    return rk.attribute(model, images(), 1, backend="reference")


def test_parametrised_weights() -> None:
    """Read anew from what they are made of, which stays as it is."""
    model = plain()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[3])
    model.eval()
    explainer = rk.RAP(model, backend="reference")
    for factor in (1.0, -2.0):
        with torch.no_grad():
            model[0].parametrizations.weight.original0.mul_(factor)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        same = plain()
        with torch.no_grad():
            same[0].weight.copy_(model[0].weight)
            same[3].weight.copy_(model[3].weight)
        torch.testing.assert_close(explainer.attribute(images(), 1), explained(same))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Tied(nn.Module):
    """Two layers of one weight, and one layer called twice."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(108, 108), nn.Linear(108, 108), nn.Linear(108, 5)
        if tied:
            self.b.weight = self.a.weight
        else:
            self.b.weight = nn.Parameter(self.a.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(torch.relu(self.a(x.flatten(1)))))
        return self.c(torch.relu(self.b(y)))


def test_tied_weights() -> None:
    tied, apart = (seeded(lambda t=t: Tied(t)) for t in (True, False))
    explainer = rk.RAP(tied, backend="reference")
    torch.testing.assert_close(explainer.attribute(images(), 1), explained(apart))
    with torch.no_grad():
        for weight in (tied.a.weight, apart.a.weight, apart.b.weight):
            weight.neg_()
    torch.testing.assert_close(explainer.attribute(images(), 1), explained(apart))


class Running(nn.Module):
    """Computes a buffer in its forward, and reads tensors that are neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(108, 5)
        self.register_buffer("seen", torch.zeros(108))
        self.factor = torch.full((108,), 2.0, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        self.seen = x.detach().abs().amax(0)
        return self.fc(x * self.factor * torch.arange(108, dtype=x.dtype))


def test_buffers_computed_in_forward() -> None:
    model = seeded(Running)
    relevance = explained(model)
    assert not model.seen.any()
    assert bool(torch.isfinite(relevance).all())
    with torch.no_grad():
        expected = (model(images())[:, 1]).sum()
    torch.testing.assert_close(relevance.sum(), expected)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = plain()
    assert torch.equal(explained(wrap(model)), explained(model))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lazy_layers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(5, dtype=torch.float64)).eval()
    with pytest.raises(errors.ArgumentError, match=r"those of 1 \(LazyLinear\).*call model\(x\)"):
        explained(model)
    model(images())
    assert explained(model).shape == images().shape


@pytest.mark.cpu_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_layers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 5)).eval()
    packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(errors.ArgumentTypeError, match=r"1 \(Linear\) is quantised: explain"):
        rk.attribute(packed, images().float(), backend="reference")


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        ("meta", "cpu", "x must be on the device of the model, meta, got cpu"),
        ("cpu", "meta", "x must be on the device of the model, cpu, got meta"),
        ("meta", "meta", "x must have entries, got a tensor on the meta device"),
    ],
)
@pytest.mark.cpu_only
def test_other_devices(model: str, x: str, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        rk.attribute(plain().to(model), images().to(x), backend="reference")


def _set_data(model: Any) -> None:
    model[0].weight.data = -model[0].weight.data


def _load(model: Any) -> None:
    model.load_state_dict({name: -value for name, value in model.state_dict().items()})


def _assign(model: Any) -> None:
    state = {name: -value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _new_parameter(model: Any) -> None:
    model[0].weight = nn.Parameter(2 * model[0].weight.detach())


def _new_layer(model: Any) -> None:
    model[0] = seeded(lambda: nn.Conv2d(3, 4, 5, padding=2), seed=8)


def _new_activation(model: Any) -> None:
    model[1] = nn.Sigmoid()


def _no_bias(model: Any) -> None:
    model[3].bias = None


@pytest.mark.parametrize(
    "change", [_set_data, _load, _assign, _new_parameter, _new_layer, _new_activation, _no_bias]
)
def test_changes_between_calls_are_noticed(change: Callable[[nn.Module], None]) -> None:
    model = plain()
    explainer = rk.RAP(model, backend="reference")
    before = explainer.attribute(images(), 1)
    change(model)
    after = explainer.attribute(images(), 1)
    assert torch.equal(after, explained(copy.deepcopy(model)))
    if change is not _no_bias:
        assert not torch.equal(after, before)
