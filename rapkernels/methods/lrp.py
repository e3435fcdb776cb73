"""Layer-wise Relevance Propagation: its explainer."""

from __future__ import annotations

from torch import nn
from typing_extensions import override

from rapkernels import checks
from rapkernels.backends import Backend
from rapkernels.composites import COMPOSITES, Composite
from rapkernels.errors import ArgumentTypeError
from rapkernels.explainer import Attention, Precision
from rapkernels.methods.output import OutputExplainer
from rapkernels.outputs import Output
from rapkernels.rules.base import Method, Sharing
from rapkernels.rules.choices import RuleChoices
from rapkernels.rules.lrp import check_composite, choose_lrp


class LRP(OutputExplainer):
    """Layer-wise Relevance Propagation (Bach et al., PLoS ONE 2015) of any module.

    The relevance has the shape of the input. It sums to what was sent back less what was absorbed:
    biases and stabilizers take their share of relevance, which the report counts. Residual adds,
    average pools and means follow the z-rule: shares in proportion, which are unbounded where terms
    cancel. BatchNorms are folded into the convolution before them; others pass relevance unchanged.

    Everything else is said at :class:`~rapkernels.explainer.Explainer`.

    Args:
        model: the module to explain, in eval mode.
        composite: which layer gets which rule: "EpsilonPlus", "EpsilonPlusFlat",
            "EpsilonAlpha2Beta1", "EpsilonAlpha2Beta1Flat", "EpsilonGammaBox", "GradientTimesInput"
            or a :class:`rapkernels.composites.Composite`.
        backend: "auto" (native where built), "native" or "reference".
        rules: rules for parts of this model, see :class:`~rapkernels.explainer.Explainer`.
        strict: whether operations without a rule are refused, likewise.
        attention: "constant" or "attnlrp", likewise.
        output: which tensor of what the model returns is explained, likewise.
        max_memory: how much memory a call may take, likewise.
        precision: "fp32" or "bf16", likewise.

    Raises:
        ArgumentTypeError: ``model`` is not a module, or ``composite`` neither a name nor a
            Composite.
        ArgumentError: ``composite``, ``backend``, ``attention`` or ``precision`` is not known. A
            key of the composite's ``nodes`` that names no layer is found at the first call.
        BackendError: the native backend is asked for and not built.
    """

    _settings = ("composite",)

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite = "EpsilonPlusFlat",
        backend: Backend = "auto",
        rules: RuleChoices | None = None,
        strict: bool = True,
        attention: Attention = "constant",
        output: Output = None,
        max_memory: int | str | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(model, backend, rules, strict, attention, output, max_memory, precision)
        if isinstance(composite, str):
            checks.check_choice("composite", composite, COMPOSITES)
            composite = COMPOSITES[composite]()
        if not isinstance(composite, Composite):
            raise ArgumentTypeError(
                "composite must be a name or a rapkernels.composites.Composite, got "
                f"{type(composite).__name__}"
            )
        self.composite = composite

    @override
    def _method(self) -> Method:
        sharing = Sharing(
            pool="ratio", add="ratio", stabilizer=self.composite.stabilizer, absorb_zeros=False
        )
        return Method("lrp", choose_lrp, self.composite, sharing, check=check_composite)
