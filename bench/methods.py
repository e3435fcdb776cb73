"""The methods that are measured: rapkernels, plain autograd and the libraries on PyPI.

A method is prepared once for a model and an input of shape (N, 3, H, W) and is then called with
inputs of that shape; it returns the relevance of the class it predicts, of the same shape unless
the method says another one. What `prepare` does is one-time work and is not part of a call's time.
Libraries are imported as late as that, so that a missing one is a method that does not run, and
nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.captum_model import with_addition_modules
from bench.ours import BF16, BF16_TARGETS, NATIVE, OWN, Call, Own, Shape

__all__ = [
    "FURTHER",
    "METHODS",
    "NATIVE",
    "OURS",
    "PEERS",
    "SAME_AS",
    "UNIT",
    "WHOLE_BATCH",
    "Call",
    "Method",
    "default_methods",
]


@dataclass(frozen=True)
class Method:
    """A method: `prepare` may modify the model it is given, so it is given one of its own.

    `shape` is that of what a call returns, from that of its input.
    """

    label: str
    prepare: Callable[[nn.Module, Tensor], Call]
    modules: tuple[str, ...] = ()
    shape: Shape = list

    def load_libraries(self) -> None:
        """Import what `prepare` needs; raises ImportError where it is not installed."""
        for name in self.modules:
            importlib.import_module(name)


def _forward(model: nn.Module, _example: Tensor) -> Call:
    @torch.no_grad()
    def call(x: Tensor) -> Tensor:
        output: Tensor = model(x)
        return output

    return call


def _ours(own: Own) -> Method:
    return Method(own.label, own.prepare, ("rapkernels",), own.shape)


def _input_x_gradient(model: nn.Module, _example: Tensor) -> Call:
    def call(x: Tensor) -> Tensor:
        leaf = x.detach().clone().requires_grad_(True)
        score = model(leaf).max(dim=1).values.sum()
        (gradient,) = torch.autograd.grad(score, leaf)
        return gradient * x

    return call


def _zennit(composite: str) -> Callable[[nn.Module, Tensor], Call]:
    def prepare(model: nn.Module, _example: Tensor) -> Call:
        composites = importlib.import_module("zennit.composites")
        gradient = importlib.import_module("zennit.attribution").Gradient
        canonizers = [_zennit_canonizer(model)]
        attributor = gradient(model, getattr(composites, composite)(canonizers=canonizers))
        # Entered once and kept, as for a data set: registering the hooks is not timed.
        attributor.__enter__()

        def call(x: Tensor) -> Tensor:
            relevance: Tensor = attributor(x, _predicted_score)[1]
            return relevance

        return call

    return prepare


def _zennit_canonizer(model: nn.Module) -> Any:
    if type(model).__name__ == "ResNet":
        return importlib.import_module("zennit.torchvision").ResNetCanonizer()
    if type(model).__name__ == "VGG":
        return importlib.import_module("zennit.torchvision").VGGCanonizer()
    return importlib.import_module("zennit.canonizers").SequentialMergeBatchNorm()


def _predicted_score(output: Tensor) -> Tensor:
    mask = torch.zeros_like(output).scatter_(1, output.argmax(1, keepdim=True), 1.0)
    return output * mask


def _captum_lrp(model: nn.Module, example: Tensor) -> Call:
    lrp = importlib.import_module("captum.attr").LRP(with_addition_modules(model))
    # captum wants to be told the class; looking it up is not part of its time.
    with torch.no_grad():
        targets = model(example).argmax(dim=1)

    def call(x: Tensor) -> Tensor:
        relevance: Tensor = lrp.attribute(x, target=targets)
        return relevance.detach()

    return call


def _autolrp(model: nn.Module, _example: Tensor) -> Call:
    library = importlib.import_module("autolrp")

    def call(x: Tensor) -> Tensor:
        leaf = library.tensor(x)
        output = model(leaf)
        rows = torch.arange(x.shape[0])
        output[rows, output.detach().argmax(dim=1)].sum().lrp()
        return torch.Tensor(leaf.relevance)

    return call


UNIT = "forward"
# RAP stands beside its peers; what else this library has is in a table of its own.
PEERS = (NATIVE, BF16, "rap_reference")
FURTHER = tuple(name for name in OWN if name not in PEERS)
# The methods of this library, by backend: these are checked against the float64 reference.
OURS = {name: own.backend for name, own in OWN.items()}
# The same rules by another library.
SAME_AS = {
    "lrp_epsilon_plus_flat": "zennit_epsilon_plus_flat",
    "lrp_epsilon_alpha2_beta1": "zennit_epsilon_alpha2_beta1",
}
_ZENNIT = ("zennit.attribution", "zennit.composites", "zennit.canonizers")
METHODS: dict[str, Method] = {
    UNIT: Method("forward (the unit)", _forward),
    **{name: _ours(OWN[name]) for name in PEERS},
    "input_x_gradient": Method("input x gradient", _input_x_gradient),
    "zennit_epsilon_plus_flat": Method(
        "zennit EpsilonPlusFlat", _zennit("EpsilonPlusFlat"), _ZENNIT
    ),
    "zennit_epsilon_alpha2_beta1": Method(
        "zennit EpsilonAlpha2Beta1", _zennit("EpsilonAlpha2Beta1"), _ZENNIT
    ),
    "captum_lrp": Method("captum LRP (epsilon; one sign)", _captum_lrp, ("captum.attr",)),
    "autolrp": Method("autoLRP (epsilon; one sign)", _autolrp, ("autolrp",)),
    **{name: _ours(OWN[name]) for name in FURTHER},
}
# The batch at which all is measured; at others RAP and its peers, and what limits.py compares.
WHOLE_BATCH = 4
_AT_EVERY_BATCH = (*(name for name in METHODS if name not in FURTHER), "lrp_epsilon")
# Where the cosine of bfloat16 is promised: networks of convolutions without normalisations that
# follow the values.
_BF16_NETWORKS = ("vgg16", "resnet50", "efficientnet_lite0", "tiny")


def default_methods(network: str, batch: int) -> list[str]:
    """What is measured on a network at a batch where nothing else was asked for."""
    return [
        name
        for name in (METHODS if batch == WHOLE_BATCH else _AT_EVERY_BATCH)
        if name not in (BF16, BF16_TARGETS) or (network in _BF16_NETWORKS and OWN[name].available())
    ]
