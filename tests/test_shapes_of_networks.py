"""Networks on sequences (1-d), volumes (3-d) and tables, with every method."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from tests.explainers import METHODS, STARTING_AT_LAYERS, WALKERS, explainer
from tests.networks import drawn, seeded
from tests.networks_shapes import SHAPED

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


@functools.cache
def network(name: str) -> nn.Module:
    """Exported once for all tests."""
    return seeded(SHAPED[name][0])


def samples(name: str, count: int = 3) -> Tensor:
    return drawn(count, *SHAPED[name][1], seed=11, dtype=torch.float64)


def explaining(method: str, name: str, **options: Any) -> Any:
    # Tables have no positions where a map would start.
    if "table" in name and method.endswith(STARTING_AT_LAYERS):
        options["layer"] = ""
    return explainer(method, network(name), **options)


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("method", WALKERS)
def test_conserves(method: str, name: str, backend: Any) -> None:
    x = samples(name)
    relevance, report = explaining(method, name, backend=backend).attribute(
        x, [0, 1, 4], return_report=True
    )
    shape = (3, *x.shape[2:]) if "sharing_ratio" in method else x.shape
    assert relevance.shape == shape
    assert float(relevance.abs().sum()) > 0
    # Float64 sums of some hundred entries.
    assert float(report.worst().error.max()) < 1e-12
    if method in STARTING_AT_LAYERS:
        return
    absorbed = torch.stack([row.absorbed for row in report.rows]).sum(0)
    magnitude = torch.stack([row.magnitude for row in report.rows]).amax(0)
    off = (report.total + absorbed - report.score).abs() / magnitude
    assert float(off.max()) < 1e-12
    torch.testing.assert_close(
        report.score, network(name)(x).detach().gather(1, torch.tensor([[0], [1], [4]]))[:, 0]
    )


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_samples(method: str, name: str) -> None:
    """Of any size, from one export."""
    made, x = explaining(method, name), samples(name, 5)
    whole = made.attribute(x, 1)
    for part in (slice(0, 1), slice(2, 5), slice(3, 3)):
        torch.testing.assert_close(made.attribute(x[part], 1), whole[part])


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("method", METHODS)
def test_backends_agree(method: str, name: str, native: Any) -> None:
    del native
    maps = [
        explaining(method, name, backend=backend).attribute(samples(name), 1)
        for backend in ("native", "reference")
    ]
    torch.testing.assert_close(maps[0], maps[1])


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("variant", ["paper", "author"])
def test_variants_of_rap(variant: Any, name: str) -> None:
    relevance = rk.RAP(network(name), variant).attribute(samples(name), 1)
    assert bool(torch.isfinite(relevance).all())


def test_the_batch_is_dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    from rapkernels.capture import capture

    exports = []

    def counted(*args: Any) -> Any:
        exports.append(args)
        return capture(*args)

    monkeypatch.setattr("rapkernels.cache.capture", counted)
    for build, shape in SHAPED.values():
        made = rk.RAP(seeded(build))
        for count in (2, 1, 4):
            made.attribute(drawn(count, *shape, dtype=torch.float64), 1)
    assert len(exports) == len(SHAPED)


def test_a_batch_norm_behind_a_linear_layer_passes_relevance() -> None:
    """It is no part of the layer, as it is of a convolution."""
    rules = {row.module: row.rule for row in rk.RAP(network("table")).plan(samples("table")).rows}
    assert rules["0"] == rules["2"] == "identity"
    _, report = rk.RAP(network("table")).attribute(samples("table"), 1, return_report=True)
    for row in report.rows:
        if row.module in ("0", "2"):
            torch.testing.assert_close(row.received, row.handed_on)


def test_gradient_times_input_of_a_convolution_in_one_dimension(backend: Any) -> None:
    """Without biases and normalisations this rule is the gradient itself."""
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, 2, 2, 2, bias=False),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(4, 4, 2, groups=2, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12, 5, bias=False),
        )
    )
    x = drawn(3, 2, 16, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[:, 2].sum(), x)
    found = rk.LRP(net, "GradientTimesInput", backend=backend).attribute(x.detach(), 2)
    torch.testing.assert_close(found, (gradient * x).detach())


@pytest.mark.slow
def test_a_video_network_of_torchvision() -> None:
    video = pytest.importorskip("torchvision").models.video
    net = seeded(lambda: video.r2plus1d_18(weights=None, num_classes=5), torch.float32)
    x = drawn(2, 3, 4, 16, 16)
    for made in (rk.RAP(net), rk.LRP(net)):
        relevance, report = made.attribute(x, 1, return_report=True)
        assert bool(torch.isfinite(relevance).all())
        # Float32 sums of some ten thousand entries.
        assert float(report.worst().error.max()) < 1e-6
