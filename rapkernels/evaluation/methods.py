"""The methods that can be evaluated and compared, by name: a line each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..backends import Backend
from ..errors import NonPositiveTargetWarning
from ..methods import LRP, RAP, AttributionEquilibrium, ClassDistribution, SharingRatio
from ..methods.rap import VariantName
from ..metrics import to_map
from .cases import EvaluationError
from .controls import CentredDisc, CentredGaussian, RandomMaps


class MapFunction(Protocol):
    """From inputs and classes to maps of pixels."""

    def __call__(self, x: Tensor, targets: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return the maps (N, H, W) of a batch.

        Args:
            x: (N, C, H, W), the network's input.
            targets: (N,) int64, the class to explain of each sample.
            classes: (N, K) int64, the classes that a sample shows, its target among them, for
                methods that compare classes; the others pay no attention to it.
        """
        ...


@dataclass(frozen=True)
class Settings:
    """What the options of a command choose for all methods.

    Attributes:
        variant: of RAP's rules.
        backend: what computes the rules.
        seed: of what is drawn at random.
    """

    variant: VariantName = "default"
    backend: Backend = "auto"
    seed: int = 0


Build = Callable[[nn.Module, Settings], MapFunction]
Make = Callable[[nn.Module, Settings], Any]


@dataclass(frozen=True)
class Method:
    """A method that gives maps.

    Attributes:
        name: on the command line and in CSV.
        label: in tables and figures.
        build: makes the map function for a network in eval mode.
        control: whether it knows nothing of the network.
        make: makes the method's explainer, where it has one.
    """

    name: str
    label: str
    build: Build
    control: bool = False
    make: Make | None = None


class ExplainerMaps:
    """Maps of an explainer of this package: the sum over channels.

    That a target's logit is not positive is not warned of: tables count it.

    Args:
        explain: from class sets (N, K), or None, to the explainer.
    """

    def __init__(self, explain: Callable[[Tensor | None], Any]) -> None:
        self._explain = explain

    def __call__(self, x: Tensor, targets: Tensor, classes: Tensor | None = None) -> Tensor:
        """Maps (N, H, W) of targets (N,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NonPositiveTargetWarning)
            return _map_of(x, self._explain(classes).attribute(x, target=targets))

    def of_targets(self, x: Tensor, targets: Tensor, classes: Tensor | None = None) -> Tensor:
        """Maps (T, N, H, W) of targets (N, T), in one call."""
        found = self._explain(classes).attribute_targets(x, targets)
        return torch.stack([_map_of(x, relevance) for relevance in found])


def _map_of(x: Tensor, relevance: Tensor) -> Tensor:
    return to_map(relevance) if relevance.dim() == x.dim() else relevance


def maps_of_targets(
    explain: MapFunction, x: Tensor, targets: Tensor, classes: Tensor | None = None
) -> Tensor:
    """Maps (T, N, H, W) of targets (N, T): in one call where the method can."""
    if isinstance(explain, ExplainerMaps):
        return explain.of_targets(x, targets, classes)
    return torch.stack([explain(x, one, classes) for one in targets.unbind(1)])


def _explained(name: str, label: str, make: Make) -> Method:
    """Maps of an explainer, made once for a network."""

    def build(model: nn.Module, settings: Settings) -> MapFunction:
        explainer = make(model, settings)
        return ExplainerMaps(lambda _: explainer)

    return Method(name, label, build, make=make)


def _competing(name: str, label: str, make: Make) -> Method:
    """Maps of class distributions on an explainer; classes that a sample shows compete."""

    def build(model: nn.Module, settings: Settings) -> MapFunction:
        base = make(model, settings)
        return ExplainerMaps(lambda classes: ClassDistribution(base, classes, **_VAR))

    def of_automatic_sets(model: nn.Module, settings: Settings) -> ClassDistribution:
        return ClassDistribution(make(model, settings), **_VAR)

    return Method(name, label, build, make=of_automatic_sets)


def input_x_gradient(model: nn.Module, _settings: Settings) -> MapFunction:
    """The input times the gradient of the target's logit, by torch's autograd."""

    def explain(x: Tensor, targets: Tensor, classes: Tensor | None = None) -> Tensor:  # noqa: ARG001
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_(True)
            chosen = model(leaf).gather(1, targets[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf)
        return to_map(gradient * x)

    return explain


def _control(make: Callable[[Settings], MapFunction]) -> Build:
    return lambda _model, settings: make(settings)


def _rap(model: nn.Module, settings: Settings) -> RAP:
    return RAP(model, settings.variant, None, settings.backend)


def _equilibrium(model: nn.Module, settings: Settings) -> AttributionEquilibrium:
    return AttributionEquilibrium(model, backend=settings.backend)


def _sharing_ratio(model: nn.Module, settings: Settings) -> SharingRatio:
    return SharingRatio(model, backend=settings.backend)


def _lrp(composite: str) -> Make:
    return lambda model, settings: LRP(model, composite, settings.backend)


# Signed values compete, at several temperatures: RAP's maps are nearly multiples of one another,
# and magnitudes would let the least probable class win.
_VAR: dict[str, Any] = {"absolute": False, "temperature": [1.0, 5.0, 100.0]}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _explained("rap", "RAP", _rap),
        _explained("equilibrium", "Equilibrium", _equilibrium),
        _explained("sharing_ratio", "Sharing Ratio", _sharing_ratio),
        _competing("class_distribution", "VAR on RAP", _rap),
        _competing("class_distribution_lrp", "VAR on EpsilonPlusFlat", _lrp("EpsilonPlusFlat")),
        _explained("lrp", "LRP EpsilonPlusFlat", _lrp("EpsilonPlusFlat")),
        _explained("lrp_alpha2_beta1", "LRP EpsilonAlpha2Beta1", _lrp("EpsilonAlpha2Beta1")),
        _explained("lrp_gamma_box", "LRP EpsilonGammaBox", _lrp("EpsilonGammaBox")),
        Method("input_x_gradient", "input x gradient", input_x_gradient),
        Method("disc", "centred disc", _control(lambda _: CentredDisc()), control=True),
        Method("gaussian", "centred Gaussian", _control(lambda _: CentredGaussian()), control=True),
        Method("random", "random", _control(lambda s: RandomMaps(s.seed)), control=True),
    )
}


def choose_methods(names: Sequence[str] | None, controls: bool) -> list[Method]:
    """The methods of these names, in the order given; None for all.

    Args:
        names: keys of ``METHODS``.
        controls: whether all controls follow, named or not.

    Raises:
        EvaluationError: an unknown name.
    """
    unknown = [name for name in names or [] if name not in METHODS]
    if unknown:
        raise EvaluationError(
            f"there is no method '{unknown[0]}'; the methods are {', '.join(METHODS)}."
        )
    every = [method.name for method in METHODS.values() if not method.control]
    wanted = list(dict.fromkeys(every if names is None else names))
    if controls:
        shared = [method.name for method in METHODS.values() if method.control]
        wanted = [name for name in wanted if name not in shared] + shared
    return [METHODS[name] for name in wanted]
