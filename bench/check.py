"""Correctness before speed: a result is compared with the float64 reference before it is timed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.limits import TOLERANCE, TRUTH_CONSERVATION, Tolerance
from bench.ours import NATIVE, OWN, Maker, explained, probable
from bench.schema import Check


class WrongResultError(RuntimeError):
    """A method's relevance is not the one that the float64 reference gives."""


@dataclass(frozen=True)
class Truth:
    """The float64 reference on one network.

    relevance: (N, ...); of T targets (T * N, ...), all samples of the first target first.
    targets: (N,), the class that is explained, the first one of several.
    """

    relevance: Tensor
    targets: Tensor


def explain(model: nn.Module, x: Tensor, backend: str, targets: Tensor) -> tuple[Tensor, float]:
    """RAP by `backend`, and the worst conservation error of a node and sample."""
    return explained(OWN[NATIVE].make(model, backend), x, targets)


class Remembering:
    """An explainer of one input that computes each class once."""

    def __init__(self, explainer: Any) -> None:
        self._explainer = explainer
        self._known: dict[tuple[int, ...], tuple[Tensor, Any]] = {}

    def attribute(self, x: Tensor, target: Tensor, return_report: bool) -> tuple[Tensor, Any]:
        """As the explainer's."""
        classes = tuple(target.tolist())
        if classes not in self._known:
            found = self._explainer.attribute(x, target=target, return_report=return_report)
            self._known[classes] = found
        return self._known[classes]


# The float64 references of one model and input, by what makes them.
References = dict[Maker, Remembering]


def truth(
    model: nn.Module, x: Tensor, method: str = NATIVE, known: References | None = None
) -> Truth:
    """What `method` must give for the classes that `model` predicts for `x`.

    It is computed by the reference backend in float64, one class after the other; what is in
    `known`, of the same model and input, is not computed again.

    Raises WrongResultError where even that does not conserve relevance.
    """
    own = OWN[method]
    classes = probable(model, x, own.use.classes)
    known = {} if known is None else known
    if own.make not in known:
        known[own.make] = Remembering(own.make(copy.deepcopy(model).double(), "reference"))
    explainer = known[own.make]
    relevance, error = own.use.exact(explainer, x.double(), classes)
    if not error <= TRUTH_CONSERVATION:
        raise WrongResultError(
            f"the float64 reference itself loses relevance: worst conservation error of a node "
            f"{error:.1e}, allowed at most {TRUTH_CONSERVATION:g}"
        )
    return Truth(relevance, classes[:, 0])


def check_ours(
    method: str, relevance: Tensor, model: nn.Module, x: Tensor, right: Truth, network: str
) -> Check:
    """Check what the timed call of `method` returned, and the conservation report of its backend.

    The report is that of the explainer for the predicted class; `network` is the model's name.

    Raises WrongResultError.
    """
    own = OWN[method]
    explainer = own.explainer(copy.deepcopy(model))
    conservation = explained(explainer, x, right.targets)[1]
    return compare(method, relevance, conservation, right, own.tolerance_on(network))


def compare(
    method: str,
    relevance: Tensor,
    conservation: float,
    expected: Truth,
    tolerance: Tolerance = TOLERANCE,
) -> Check:
    """Compare a result with the truth, sample by sample and target by target.

    Raises WrongResultError that names all that is off.
    """
    if relevance.shape != expected.relevance.shape:
        raise WrongResultError(
            f"{method}: relevance must have shape {list(expected.relevance.shape)}, "
            f"got {list(relevance.shape)}"
        )
    found = relevance.detach().double().flatten(1)
    right = expected.relevance.flatten(1)
    if not found.isfinite().all():
        raise WrongResultError(f"{method}: the relevance holds NaN or inf")
    magnitude = right.abs()
    cosine = torch.nn.functional.cosine_similarity(found, right, dim=1, eps=0.0)
    error = (found - right).abs().amax(1) / magnitude.amax(1)
    total = (found.sum(1) - right.sum(1)).abs() / magnitude.sum(1)
    result = Check(
        method=method,
        cosine=float(cosine.min()),
        max_error=float(error.max()),
        total_error=float(total.max()),
        conservation=conservation,
    )
    measured = (
        ("1 - cosine", 1 - result.cosine, 1 - tolerance.cosine),
        ("largest error", result.max_error, tolerance.max_error),
        ("error of the total", result.total_error, tolerance.total_error),
        ("conservation error", result.conservation, tolerance.conservation),
    )
    # Written so that NaN, which a map of zeros gives, counts as wrong.
    faults = [
        f"{name} {value:.3g}, allowed at most {bound:.3g}"
        for name, value, bound in measured
        if not value <= bound
    ]
    if faults:
        raise WrongResultError(
            f"{method} does not agree with the float64 reference: {'; '.join(faults)}"
        )
    return result
