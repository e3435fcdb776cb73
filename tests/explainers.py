"""Every method by name, made from a model: what tests of all of them loop over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

import rapkernels as rk
from rapkernels.composites import COMPOSITES
from rapkernels.explainer import Explainer

# Networks without an activation function after a convolution: methods that start at a layer take
# the output there.
_WITHOUT_START = {
    *("sliced", "affine", "sequence", "moved", "matmul", "linear alone", "windowed"),
}

WALKERS: dict[str, Callable[..., Explainer]] = {
    "rap": rk.RAP,
    "equilibrium": rk.AttributionEquilibrium,
    "sharing_ratio": rk.SharingRatio,
    "sharing_ratio normalised": partial(rk.SharingRatio, start="normalised"),
    **{name: partial(rk.LRP, composite=name) for name in COMPOSITES},
}
STARTING_AT_LAYERS = ("equilibrium", "sharing_ratio", "sharing_ratio normalised")


def _distribution(method: str, model: nn.Module, layer: str | None = None, **options: Any) -> Any:
    settings = {"layer": layer} if method in STARTING_AT_LAYERS else {}
    return rk.ClassDistribution(WALKERS[method](model, **settings, **options))


METHODS: dict[str, Callable[..., Any]] = {
    **WALKERS,
    "class_distribution": partial(_distribution, "rap"),
    "class_distribution of sharing_ratio": partial(_distribution, "sharing_ratio"),
}


def explainer(method: str, model: nn.Module, network: str = "", **options: Any) -> Any:
    """A method's explainer of a model; ``network`` is its name in NETWORKS."""
    if method.endswith(STARTING_AT_LAYERS) and network in _WITHOUT_START:
        options["layer"] = ""
    return METHODS[method](model, **options)
