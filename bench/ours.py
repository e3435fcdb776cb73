"""This library's methods: the call that is timed, and the float64 reference of the same.

A method is an explainer and the use that is made of it: one map, the maps of several classes in one
call, or one map by the competition of several classes. The classes are the most probable ones.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.limits import BRANCHES, TOLERANCE, TOLERANCES, Tolerance

Call = Callable[[Tensor], Tensor]
# (model, backend, options of the explainer) -> an explainer of rapkernels.
Maker = Callable[..., Any]
Shape = Callable[[Sequence[int]], list[int]]

TARGETS = 5
COMPETITORS = 3


@dataclass(frozen=True)
class Use:
    """What is asked of an explainer.

    classes: how many classes K of each sample.
    prepare: (explainer, model, example) -> the call that is timed.
    exact: (explainer, x, classes (N, K)) -> the same by one call for each class, whatever the
        library shares between them; and the worst conservation error of a node in these calls.
    """

    classes: int
    prepare: Callable[[Any, nn.Module, Tensor], Call]
    exact: Callable[[Any, Tensor, Tensor], tuple[Tensor, float]]


def explained(explainer: Any, x: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """The relevance of one class of each sample, and the worst conservation error of a node."""
    with warnings.catch_warnings():
        # Of several classes some have a negative logit.
        category = importlib.import_module("rapkernels.errors").NonPositiveTargetWarning
        warnings.simplefilter("ignore", category)
        relevance, report = explainer.attribute(x, target=target, return_report=True)
    return relevance, float(report.worst().error.max())


@torch.no_grad()
def probable(model: nn.Module, x: Tensor, count: int) -> Tensor:
    """The `count` most probable classes (N, count) of each sample, the most probable one first."""
    return torch.topk(model(x), count, dim=1).indices


def _predicted(explainer: Any, _model: nn.Module, _example: Tensor) -> Call:
    def call(x: Tensor) -> Tensor:
        relevance: Tensor = explainer.attribute(x)
        return relevance

    return call


def _predicted_exact(explainer: Any, x: Tensor, classes: Tensor) -> tuple[Tensor, float]:
    return explained(explainer, x, classes[:, 0])


def _targets(explainer: Any, model: nn.Module, example: Tensor) -> Call:
    # Which classes are asked for is the user's to say; looking them up is not part of the time.
    classes = probable(model, example, TARGETS)

    def call(x: Tensor) -> Tensor:
        relevance: Tensor = explainer.attribute_targets(x, classes)
        return relevance.flatten(0, 1)

    return call


def _targets_exact(explainer: Any, x: Tensor, classes: Tensor) -> tuple[Tensor, float]:
    found = [explained(explainer, x, target) for target in classes.unbind(1)]
    return torch.cat([relevance for relevance, _ in found]), max(error for _, error in found)


def _competition(explainer: Any, model: nn.Module, example: Tensor) -> Call:
    classes = probable(model, example, COMPETITORS)
    competition = importlib.import_module("rapkernels").ClassDistribution(explainer, classes)

    def call(x: Tensor) -> Tensor:
        relevance: Tensor = competition.attribute(x, classes[:, 0])
        return relevance

    return call


def _competition_exact(explainer: Any, x: Tensor, classes: Tensor) -> tuple[Tensor, float]:
    errors = []

    def base(x: Tensor, target: Tensor) -> Tensor:
        relevance, error = explained(explainer, x, target)
        errors.append(error)
        return relevance

    competition = importlib.import_module("rapkernels").ClassDistribution(base, classes)
    return competition.attribute(x, classes[:, 0]), max(errors)


ONE_CLASS = Use(1, _predicted, _predicted_exact)
SEVERAL_TARGETS = Use(TARGETS, _targets, _targets_exact)
COMPETITION = Use(COMPETITORS, _competition, _competition_exact)


def _positions(shape: Sequence[int]) -> list[int]:
    return [shape[0], *shape[2:]]


def _of_targets(shape: Sequence[int]) -> list[int]:
    return [TARGETS * shape[0], *shape[1:]]


def _rap(model: nn.Module, backend: str, **options: str) -> Any:
    return importlib.import_module("rapkernels").RAP(model, backend=backend, **options)


def _lrp(composite: str) -> Maker:
    def make(model: nn.Module, backend: str) -> Any:
        return importlib.import_module("rapkernels").LRP(model, composite, backend=backend)

    return make


def _lrp_epsilon(model: nn.Module, backend: str) -> Any:
    rules = importlib.import_module("rapkernels.composites")
    composite = rules.Composite(conv=rules.Epsilon(), linear=rules.Epsilon())
    return importlib.import_module("rapkernels").LRP(model, composite, backend=backend)


def _equilibrium(model: nn.Module, backend: str) -> Any:
    return importlib.import_module("rapkernels").AttributionEquilibrium(model, backend=backend)


def _sharing_ratio(model: nn.Module, backend: str) -> Any:
    return importlib.import_module("rapkernels").SharingRatio(model, backend=backend)


@dataclass(frozen=True)
class Own:
    """A method of this library; `shape` is that of what a call returns, from that of x.

    `options` are the explainer's in what is timed; the float64 reference is without them.
    `proportional`: residual adds share by `a / (a + b)`, which has no bound.
    """

    label: str
    make: Maker
    use: Use = ONE_CLASS
    backend: str = "native"
    tolerance: Tolerance = TOLERANCE
    shape: Shape = list
    options: Mapping[str, str] = field(default_factory=dict)
    proportional: bool = False

    def tolerance_on(self, network: str) -> Tolerance:
        """What the check allows on a network."""
        ill = self.proportional and network in BRANCHES
        return TOLERANCES["branches"] if ill else self.tolerance

    def explainer(self, model: nn.Module) -> Any:
        """What is timed and checked."""
        return self.make(model, self.backend, **self.options)

    def prepare(self, model: nn.Module, example: Tensor) -> Call:
        """The call that is timed."""
        return self.use.prepare(self.explainer(model), model, example)

    def available(self) -> bool:
        """Whether this version of the library has the options."""
        explainers = importlib.import_module("rapkernels")
        return set(self.options) <= set(inspect.signature(explainers.RAP).parameters)

    @property
    def truth(self) -> tuple[Maker, Use]:
        """What methods have in common that must give the same."""
        return self.make, self.use


NATIVE = "rap"
RAP_TARGETS = "rap_targets"
# RAP with its split passes in bfloat16, and of several targets.
BF16, BF16_TARGETS = "rap_bf16", "rap_bf16_targets"
OWN: dict[str, Own] = {
    NATIVE: Own("rapkernels RAP", _rap),
    "rap_reference": Own("rapkernels RAP, reference backend", _rap, backend="reference"),
    "lrp_epsilon_plus_flat": Own(
        "rapkernels LRP EpsilonPlusFlat",
        _lrp("EpsilonPlusFlat"),
        tolerance=TOLERANCES["one sign"],
        proportional=True,
    ),
    "lrp_epsilon_alpha2_beta1": Own(
        "rapkernels LRP EpsilonAlpha2Beta1",
        _lrp("EpsilonAlpha2Beta1"),
        tolerance=TOLERANCES["one sign"],
        proportional=True,
    ),
    "lrp_epsilon": Own(
        "rapkernels LRP epsilon everywhere",
        _lrp_epsilon,
        tolerance=TOLERANCES["ratio"],
        proportional=True,
    ),
    "equilibrium": Own(
        "rapkernels Attribution Equilibrium", _equilibrium, tolerance=TOLERANCES["one sign"]
    ),
    "sharing_ratio": Own(
        "rapkernels Sharing Ratio",
        _sharing_ratio,
        tolerance=TOLERANCES["one sign"],
        shape=_positions,
    ),
    RAP_TARGETS: Own(
        f"rapkernels RAP, {TARGETS} targets", _rap, SEVERAL_TARGETS, shape=_of_targets
    ),
    BF16: Own(
        "rapkernels RAP, bf16",
        _rap,
        tolerance=TOLERANCES["bf16"],
        options={"precision": "bf16"},
    ),
    BF16_TARGETS: Own(
        f"rapkernels RAP, bf16, {TARGETS} targets",
        _rap,
        SEVERAL_TARGETS,
        tolerance=TOLERANCES["bf16"],
        shape=_of_targets,
        options={"precision": "bf16"},
    ),
    "class_distribution": Own(
        f"rapkernels class distribution on RAP, {COMPETITORS} classes",
        _rap,
        COMPETITION,
        tolerance=TOLERANCES["cut"],
    ),
}
