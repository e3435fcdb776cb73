"""The one-line call: :func:`attribute`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from torch import Tensor, nn

from rapkernels import checks
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.explainer import Explainer
from rapkernels.inputs import Several
from rapkernels.methods import LRP, RAP, AttributionEquilibrium, ClassDistribution, SharingRatio
from rapkernels.outputs import Output
from rapkernels.targets import Target

EXPLAINERS: dict[str, Callable[..., Explainer]] = {
    "rap": RAP,
    "equilibrium": AttributionEquilibrium,
    "sharing_ratio": SharingRatio,
    "lrp": LRP,
}
METHODS = (*EXPLAINERS, "class_distribution")


@overload
def attribute(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    method: str = "rap",
    output: Output = None,
    **options: Any,
) -> Tensor: ...


@overload
def attribute(
    model: nn.Module,
    x: Several,
    target: Target = None,
    method: str = "rap",
    output: Output = None,
    **options: Any,
) -> Any: ...


def attribute(
    model: nn.Module,
    x: Tensor | Several,
    target: Target = None,
    method: str = "rap",
    output: Output = None,
    **options: Any,
) -> Any:
    """Return the relevance of ``x`` for the decision of a model.

    The same as making the method's explainer and calling its ``attribute(x, target)``; see there
    for errors. A loop over it exports the model once.

    Args:
        model: the module to explain, in eval mode.
        x: ``(N, ...)``, what the model takes, or several in a tuple, list or dict.
        target: which output to explain; None for the predicted class.
        method: "rap" (:class:`RAP`), "equilibrium" (:class:`AttributionEquilibrium`),
            "sharing_ratio" (:class:`SharingRatio`), "lrp" (:class:`LRP`) or "class_distribution"
            (:class:`ClassDistribution`).
        output: which tensor of what the model returns is explained, where it returns several; see
            :class:`~rapkernels.explainer.Explainer`.
        options: what the explainer takes beside the model, such as ``variant``, ``composite``,
            ``ratio`` or ``backend``; for "class_distribution" beside the ``base``, which is then
            the name of another method, "rap" unless given, or an explainer of its own.

    Raises:
        ArgumentTypeError: the method has no such option.
        Else as the explainer.
    """
    checks.check_choice("method", method, METHODS)
    explainer: Any
    if method in EXPLAINERS:
        explainer = _made(method, EXPLAINERS[method], model, options | {"output": output})
        return explainer.attribute(x, target)
    base = options.pop("base", "rap")
    if isinstance(base, str):
        checks.check_choice("base", base, EXPLAINERS)
        base = EXPLAINERS[base](model, output=output)
    elif output is not None:
        raise ArgumentError(
            f"output must be None where base is an explainer, which has its own, got {output!r}"
        )
    options.setdefault("model", model)
    explainer = _made(method, ClassDistribution, base, options)
    return explainer.attribute(x, target)


def _made(method: str, make: Callable[..., Any], first: Any, options: dict[str, Any]) -> Any:
    """The explainer of a method with options, which must be its own."""
    known = checks.option_names(make)
    for name in options:
        if name not in known:
            raise ArgumentTypeError(
                f'options of method="{method}" must be among {", ".join(known)}, got {name}'
            )
    return make(first, **options)
