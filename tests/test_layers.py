"""Relevance inside the network: every method, the layers of a residual network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rapkernels as rk
from tests.networks import images, network

METHODS: dict[str, Callable[..., Any]] = {
    "rap": rk.RAP,
    "equilibrium": rk.AttributionEquilibrium,
    "sharing_ratio": rk.SharingRatio,
    **{
        composite: functools.partial(rk.LRP, composite=composite)
        for composite in rk.composites.COMPOSITES
    },
}
pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


@pytest.mark.parametrize("method", METHODS)
def test_the_map_stays_as_it_is(method: str, backend: Any) -> None:
    explainer, x = METHODS[method](network("residual"), backend=backend), images()
    relevance, layers = explainer.attribute(x, 1, layers=["b", "a"])
    assert list(layers) == ["b", "a"]
    assert torch.equal(relevance, explainer.attribute(x, 1))
    for map_ in layers.values():
        assert map_.shape == ((2, 6, 6) if method == "sharing_ratio" else (2, 4, 6, 6))
        assert bool((map_ != 0).any())


@pytest.mark.parametrize("method", set(METHODS) - {"sharing_ratio", "equilibrium"})
def test_the_sum_arrives(method: str, backend: Any) -> None:
    """What a layer has is what the report says that it received."""
    explainer, x = METHODS[method](network("residual"), backend=backend), images()
    _, layers, report = explainer.attribute(x, 1, layers=["a"], return_report=True)
    received = next(row.received for row in report.rows if row.module == "a")
    torch.testing.assert_close(layers["a"].flatten(1).sum(1), received)


def test_of_class_distributions(backend: Any) -> None:
    base = rk.RAP(network("residual"), backend=backend)
    explainer = rk.ClassDistribution(base, classes=[0, 1, 3])
    relevance, layers = explainer.attribute(images(), 1, layers=["a"])
    assert relevance.shape == (2, 3, 6, 6)
    assert layers["a"].shape == (2, 4, 6, 6)


@pytest.mark.parametrize("method", ["equilibrium", "sharing_ratio", "lrp", "class_distribution"])
def test_the_one_line_call(method: str) -> None:
    model, x = network("residual"), images()
    explainers: dict[str, Callable[[Any], Any]] = {
        "equilibrium": rk.AttributionEquilibrium,
        "sharing_ratio": rk.SharingRatio,
        "lrp": rk.LRP,
        "class_distribution": lambda model: rk.ClassDistribution(rk.RAP(model)),
    }
    expected = explainers[method](model).attribute(x, 1)
    assert torch.equal(rk.attribute(model, x, 1, method), expected)
    with_base = rk.attribute(model, x, 1, "class_distribution", base="lrp", classes=[1, 2])
    expected = rk.ClassDistribution(rk.LRP(model), classes=[1, 2]).attribute(x, 1)
    assert torch.equal(with_base, expected)
