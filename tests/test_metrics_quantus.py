"""Our metrics against those of Quantus, on the same inputs.

Quantus is told our definitions: ``normalise=False`` and ``abs=False`` take the maps as they are,
``softmax`` says whether the score is the probability or the logit. What else is set is said at
each test. Quantus hands networks float32; ours take it as float64, and the images are such that
nothing is rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rapkernels.metrics import (
    aopc,
    deletion,
    gini,
    perturbation,
    pointing_game,
    randomisation,
    region_attribution,
    to_map,
)

quantus = pytest.importorskip("quantus")

pytestmark = [pytest.mark.cpu_only, pytest.mark.usefixtures("one_thread")]

AS_IT_IS = {"normalise": False, "disable_warnings": True, "display_progressbar": False}
SIZE = (12, 10)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Float64 numbers that float32 holds."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu").double()


MAPS = random(16, *SIZE)
# Objects of one sample each, from a few pixels to most of the image.
MASKS = random(16, *SIZE, seed=1) > torch.linspace(-1, 2, 16, dtype=torch.float64)[:, None, None]


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    return model.double().eval()


class InDouble(nn.Module):
    """A network for Quantus, which turns images into float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.double())
        return logits


def score(metric: Any, maps: Tensor, **given: Any) -> np.ndarray:
    """Quantus' values for maps ``(N, H, W)``; it wants a channel, and masks alike."""
    arguments: dict[str, Any] = {
        "model": None,
        "x_batch": np.zeros((len(maps), 1, *SIZE)),
        "y_batch": np.zeros(len(maps), dtype=int),
        "a_batch": maps[:, None].numpy().copy(),
        **given,
    }
    return np.asarray(metric(**arguments), dtype=np.float64)


def test_pointing_game() -> None:
    metric = quantus.PointingGame(abs=False, **AS_IT_IS)
    expected = score(metric, MAPS, s_batch=MASKS[:, None].numpy())
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(pointing_game(MAPS, MASKS, 0), expected)


@pytest.mark.parametrize("tolerance", [1, 2.5, 4])
def test_pointing_game_with_a_tolerance(tolerance: float) -> None:
    """Quantus has none: it gets the masks grown by scipy's distance transform."""
    ndimage = pytest.importorskip("scipy.ndimage")
    masks = torch.zeros_like(MASKS)
    masks[:, 2:5, 3:7] = MASKS[:, 2:5, 3:7]
    masks[:, 4, 4] = True
    grown = np.stack([ndimage.distance_transform_edt(~mask.numpy()) <= tolerance for mask in masks])
    metric = quantus.PointingGame(abs=False, **AS_IT_IS)
    expected = score(metric, MAPS, s_batch=grown[:, None])
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(pointing_game(MAPS, masks, tolerance), expected)


def test_attribution_localisation() -> None:
    """``positive_attributions``: the positive part alone. Quantus adds 1e-9 to the total."""
    metric = quantus.AttributionLocalisation(abs=False, positive_attributions=True, **AS_IT_IS)
    expected = score(metric, MAPS, s_batch=MASKS[:, None].numpy())
    np.testing.assert_allclose(region_attribution(MAPS, MASKS), expected, rtol=1e-9, atol=0)


def test_sparseness() -> None:
    """``abs=True``: of the absolute values. Quantus adds 1e-7 to each, of 1 on average."""
    expected = score(quantus.Sparseness(abs=True, **AS_IT_IS), MAPS)
    np.testing.assert_allclose(gini(MAPS), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("name", ["logit", "probability"])
def test_deletion_is_pixel_flipping(name: Any, value: float) -> None:
    """One channel, as Quantus flips the channels of a pixel apart; it leaves the start out."""
    model, x = network(1), random(4, 1, *SIZE, seed=2)
    targets = [0, 1, 2, 0]
    metric = quantus.PixelFlipping(
        abs=False, features_in_step=6, perturb_baseline=value, **AS_IT_IS
    )
    expected = score(
        metric,
        MAPS[:4],
        model=InDouble(model).eval(),
        x_batch=x.numpy(),
        y_batch=np.array(targets),
        softmax=name == "probability",
    )
    found = deletion(model, x, MAPS[:4], value, 20, targets, name)
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-12, atol=1e-14)
    found = perturbation(model, x, MAPS[:4], "morf", 6, 20, value, targets, name)
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("name", ["logit", "probability"])
def test_perturbation_is_region_perturbation(order: Any, name: Any) -> None:
    """Regions of one pixel, all channels at once; Quantus gives ``f(x^(0)) - f(x^(k))``, k > 0."""
    model, x = network(3), random(4, 3, *SIZE, seed=2)
    targets = [0, 1, 2, 0]
    metric = quantus.RegionPerturbation(
        abs=False,
        patch_size=1,
        order=order,
        regions_evaluation=15,
        perturb_baseline=0.0,
        **AS_IT_IS,
    )
    expected = score(
        metric,
        MAPS[:4],
        model=InDouble(model).eval(),
        x_batch=x.numpy(),
        y_batch=np.array(targets),
        softmax=name == "probability",
    )
    found = perturbation(model, x, MAPS[:4], order, 1, 15, 0.0, targets, name)
    np.testing.assert_allclose(found[:, :1] - found[:, 1:], expected, rtol=0, atol=1e-13)
    # Samek et al. average over L + 1 points, the first of which is 0.
    np.testing.assert_allclose(aopc(found), expected.sum(1) / 16, rtol=0, atol=1e-13)


def gradient_times_input(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    model(x).gather(1, target[:, None]).sum().backward()
    assert x.grad is not None
    return (x * x.grad).detach()


def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    """What Quantus calls for explanations."""
    relevance = gradient_times_input(model, torch.tensor(inputs), torch.tensor(targets))
    return to_map(relevance)[:, None].numpy()


@pytest.mark.parametrize("absolute", [False, True])
def test_parameter_randomisation(absolute: bool) -> None:
    """Quantus seeds torch with 43 before each layer's ``reset_parameters``; so does ours here."""
    model, x = network(2), random(5, 2, *SIZE, seed=2)
    targets = [0, 1, 2, 0, 1]

    def initialise(module: Any) -> None:
        torch.manual_seed(43)
        module.reset_parameters()

    metric = quantus.MPRT(abs=absolute, seed=42, layer_order="top_down", **AS_IT_IS)
    expected = metric(
        model=model,
        x_batch=x.numpy(),
        y_batch=np.array(targets),
        explain_func=explain,
    )
    stages = list(
        randomisation(
            model, gradient_times_input, x, targets, initialise=initialise, absolute=absolute
        )
    )
    assert [stage.layer for stage in stages] == [name for name in expected if name != "original"]
    for stage in stages:
        np.testing.assert_allclose(stage.spearman, expected[stage.layer], rtol=0, atol=1e-12)
    assert min(float(stage.spearman.min()) for stage in stages) < 0.9
