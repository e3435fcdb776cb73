"""Relative Attributing Propagation: its explainer."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from rapkernels import checks
from rapkernels.backends import Backend
from rapkernels.explainer import Attention
from rapkernels.findings import Findings
from rapkernels.methods.output import OutputExplainer
from rapkernels.rules.base import Method, Sharing
from rapkernels.rules.choices import RuleChoices
from rapkernels.rules.rap import choose_rap
from rapkernels.variants import VARIANTS
from rapkernels.walker import Bounds

Bound = float | Tensor
VariantName = Literal["default", "paper", "author"]


class RAP(OutputExplainer):
    """Relative Attributing Propagation (Nam et al., AAAI 2020) of any module.

    The relevance has the shape of the input and sums to the logit of the target less what was
    absorbed. Everything else is said at :class:`~rapkernels.explainer.Explainer`.

    Args:
        model: the module to explain, in eval mode. It takes one tensor and returns one.
        variant: "default", "paper" (Eq. 7 in convolutions too) or "author" (the published code,
            quirks included).
        bounds: (low, high), the smallest and largest values that inputs can take, for the input
            layer's rule (Eq. 10): numbers, or tensors that broadcast to ``x``. None takes each
            sample's own.
        backend: "auto" (native where built), "native" or "reference".
        rules: rules for parts of this model, see :class:`~rapkernels.explainer.Explainer`.
        strict: whether operations without a rule are refused, likewise.
        attention: "constant" or "attnlrp", likewise.

    Raises:
        ArgumentTypeError: ``model`` is not a module, or ``bounds`` is not a pair of numbers or
            tensors.
        ArgumentError: ``variant``, ``backend`` or ``attention`` is not known.
        BackendError: the native backend is asked for and not built.
    """

    _settings = ("variant", "bounds")

    def __init__(
        self,
        model: nn.Module,
        variant: VariantName = "default",
        bounds: tuple[Bound, Bound] | None = None,
        backend: Backend = "auto",
        rules: RuleChoices | None = None,
        strict: bool = True,
        attention: Attention = "constant",
    ) -> None:
        checks.check_model(model)
        checks.check_choice("variant", variant, VARIANTS)
        checks.check_bounds_form(bounds)
        super().__init__(model, backend, rules, strict, attention)
        self.variant = variant
        self.bounds = bounds

    @override
    def _method(self) -> Method:
        return rap_method(self.variant)

    @override
    def _bounds(self, x: Tensor, findings: Findings) -> Bounds | None:
        return checks.expand_bounds(self.bounds, x, findings)


def rap_method(name: str) -> Method:
    """How RAP chooses rules in a variant."""
    variant = VARIANTS[name]
    return Method(
        name="rap",
        choose=choose_rap,
        settings=variant,
        sharing=Sharing(pool=variant.pool, add=variant.add),
        fold_batch_norm=variant.fold_batch_norm,
        drop_at_zero=variant.drop_at_zero,
    )
