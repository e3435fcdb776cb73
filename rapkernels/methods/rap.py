"""Relative Attributing Propagation: its explainer."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from rapkernels import checks
from rapkernels.backends import Backend
from rapkernels.errors import ArgumentError
from rapkernels.explainer import Attention, Precision
from rapkernels.findings import Findings
from rapkernels.inputs import Inputs
from rapkernels.methods.output import OutputExplainer
from rapkernels.outputs import Output
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
        model: the module to explain, in eval mode.
        variant: "default", "paper" (Eq. 7 in convolutions too) or "author" (the published code,
            quirks included).
        bounds: (low, high), the smallest and largest values that inputs can take, for the input
            layer's rule (Eq. 10): numbers, or tensors that broadcast to ``x``. None takes each
            sample's own, and is needed where the model takes several inputs.
        backend: "auto" (native where built), "native" or "reference".
        rules: rules for parts of this model, see :class:`~rapkernels.explainer.Explainer`.
        strict: whether operations without a rule are refused, likewise.
        attention: "constant" or "attnlrp", likewise.
        output: which tensor of what the model returns is explained, likewise.
        max_memory: how much memory a call may take, likewise.
        precision: "fp32" or "bf16", likewise.

    Raises:
        ArgumentTypeError: ``model`` is not a module, or ``bounds`` is not a pair of numbers or
            tensors.
        ArgumentError: ``variant``, ``backend``, ``attention`` or ``precision`` is not known.
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
        output: Output = None,
        max_memory: int | str | None = None,
        precision: Precision = "fp32",
    ) -> None:
        checks.check_model(model)
        checks.check_choice("variant", variant, VARIANTS)
        checks.check_bounds_form(bounds)
        super().__init__(model, backend, rules, strict, attention, output, max_memory, precision)
        self.variant = variant
        self.bounds = bounds

    @override
    def _method(self) -> Method:
        return rap_method(self.variant)

    @override
    def _bounds(self, inputs: Inputs, findings: Findings) -> Bounds | None:
        if self.bounds is None:
            return None
        if len(inputs.tensors) > 1:
            raise ArgumentError(
                "bounds must be None where the model takes several inputs, so that each sample of "
                f"each has its own, got bounds and {inputs.shapes()}"
            )
        return checks.expand_bounds(self.bounds, inputs.tensors[0], findings)


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
