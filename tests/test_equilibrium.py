"""Attribution Equilibrium of whole networks: the authors' outputs, sums, layers, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.methods.equilibrium import equilibrium_start
from tests.networks import Function, conv, drawn, images, network, seeded

GOLDEN = Path(__file__).parent / "golden"


class Features(nn.Module):
    """The network of the ``ae_net_vgg`` files."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (8, None, 12, 12, None, 16):
            if width is None:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.features(x), 1))


def golden(name: str) -> tuple[nn.Module, dict[str, Any]]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        found = {key: torch.from_numpy(file[key]) for key in file.files}
    model = Features().double().eval()
    model.load_state_dict(
        {
            key.removeprefix("param."): value
            for key, value in found.items()
            if key.startswith("param.")
        }
    )
    return model.to(torch.get_default_device()), {
        key: value.to(torch.get_default_device()) for key, value in found.items()
    }


@pytest.mark.parametrize("name", ["ae_net_vgg_r1", "ae_net_vgg_r2"])
def test_equals_the_authors_code(name: str, backend: Any) -> None:
    model, file = golden(name)
    ratio, target = float(file["ratio"]), int(file["target"])
    explainer = rk.AttributionEquilibrium(model, ratio=ratio, backend=backend)
    relevance, layers = explainer.attribute(file["x"], target, layers=["features.9"])
    for found, expected in ((layers["features.9"], file["R_start"]), (relevance, file["R_in"])):
        torch.testing.assert_close(
            found, expected, rtol=0, atol=1e-9 * float(expected.abs().amax())
        )
    assert float(relevance.sum()) == pytest.approx(ratio - 2, abs=0.2)


def test_start_by_hand() -> None:
    activations, gradient = drawn(2, 3, 4, 5).double(), drawn(2, 3, 4, 5, seed=1).double()
    start = equilibrium_start(activations, gradient)
    for n in range(2):
        weights = gradient[n].mean((1, 2))
        expected = weights[:, None, None] * activations[n]
        torch.testing.assert_close(start[n], expected / expected.sum().abs())
    assert torch.equal(equilibrium_start(activations, 0 * gradient), torch.zeros_like(activations))


def test_the_default_layer_is_the_last_activation_after_a_convolution() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        vgg = torchvision.models.vgg16().eval()
    from rapkernels.capture import capture
    from rapkernels.start_layer import find_start

    graph = capture(vgg, torch.empty(2, 3, 224, 224, device="meta"))
    assert graph.nodes[find_start(graph, vgg, None)].module == "features.29"
    assert graph.nodes[find_start(graph, vgg, "features.28")].module == "features.28"


def test_a_batch_is_not_mixed(backend: Any) -> None:
    """The authors' code sums over the whole batch."""
    model, x = network("residual"), images(3) * torch.tensor([1.0, 10.0, 0.1])[:, None, None, None]
    explainer = rk.AttributionEquilibrium(model, backend=backend)
    together = explainer.attribute(x, [0, 3, 2])
    for n, target in enumerate([0, 3, 2]):
        alone = explainer.attribute(x[n : n + 1], target)
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_where_a_sign_is_missing(sign: float, backend: Any) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return sign * torch.relu(m.b(torch.relu(m.a(x)))).mean((2, 3))

    model = seeded(lambda: Function(run, a=conv(3), b=conv(4, 5)))
    relevance = rk.AttributionEquilibrium(model, backend=backend).attribute(images(), 1)
    assert torch.isfinite(relevance).all()
    assert bool((relevance != 0).any())


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 3.5])
def test_sums_near_ratio_minus_2(ratio: float, backend: Any) -> None:
    model, x = network("shared"), images()
    explainer = rk.AttributionEquilibrium(model, ratio=ratio, backend=backend)
    relevance, report = explainer.attribute(x, 1, return_report=True)
    assert float(report.worst().error.max()) < 1e-12
    convolutions = [row for row in report.rows if row.rule == "equilibrium"]
    assert convolutions
    # What is missing are messages without a receiver, which the rows count as absorbed.
    for row in convolutions:
        torch.testing.assert_close(row.handed_on + row.absorbed, row.received)
    torch.testing.assert_close(report.total, relevance.flatten(1).sum(1))


def test_the_ratio_makes_more_of_the_map_positive(backend: Any) -> None:
    model, x = network("shared"), images()
    shares = [
        (rk.AttributionEquilibrium(model, ratio=r, backend=backend).attribute(x, 1) > 0)
        .double()
        .mean()
        for r in (1.0, 2.0)
    ]
    assert shares[0] < shares[1]
