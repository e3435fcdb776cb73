"""Linear layers: inner ones, the input layer, and the last one, where relevance starts."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from rapkernels.author import relprop_signed_author
from rapkernels.graph import Ref
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.conv import bounds_of

# operation -> (input, weight, bias) by the names of its schema; True: the weight is (I, O).
_LAYOUTS: dict[str, tuple[str, str, str | None, bool]] = {
    "aten.linear.default": ("input", "weight", "bias", False),
    "aten.addmm.default": ("mat1", "mat2", "self", True),
    "aten.mm.default": ("self", "mat2", None, True),
    "aten.matmul.default": ("self", "other", None, True),
}
LINEAR_OPERATIONS = tuple(_LAYOUTS)


class Linear(Rule):
    """The uniformly shifted contributions of Eqs. 7-9 of the RAP paper; the bias plays no part."""

    family: ClassVar[str] = "linear"
    fresh = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = site.variant.linear
        names = _LAYOUTS[site.node.operation]
        arguments = site.node.arguments
        x = arguments[names[0]]
        if not isinstance(x, Ref) or site.inputs != (x.name,):
            raise NoRuleError("it multiplies values that both depend on the input")
        if len(site.graph.shape_of(x.name)) < 2:
            raise NoRuleError("its input has no batch dimension")
        weight = arguments[names[1]]
        if len(site.graph.shape_of(weight.name)) != 2:
            raise NoRuleError("its weight does not have 2 dimensions")
        if arguments.get("beta", 1) != 1 or arguments.get("alpha", 1) != 1:
            raise NoRuleError("addmm has a rule for beta=1 and alpha=1 only")
        self._names = names
        self.nonnegative = x.name in site.nonnegative

    @classmethod
    @override
    def at(cls, site: Site) -> Rule:
        """The rule of the layer's role; the first step wins where it has both."""
        rules: dict[str, type[Linear]] = {"output": FirstLinear, "input": ZBoxLinear}
        return rules.get(site.role, Linear)(site)

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(self.node.arguments, args, strict=False)) | kwargs
        x_name, weight_name, bias_name, transposed = self._names
        x, weight = given[x_name], given[weight_name]
        bias = None if bias_name is None else given.get(bias_name)
        ctx.save(x, weight.t() if transposed else weight, bias)
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, _ = ctx.saved
        signed = self.site.variant.split_signed and not self.nonnegative

        def propagate(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            result: tuple[Tensor, Tensor, Tensor, Tensor] = ctx.ops.relprop_linear(
                x, weight, *relevance, self.name, signed or self.nonnegative
            )
            return result

        if signed:
            return ctx.settle(*relprop_signed_author(propagate, x, ctx.ops.merge))
        return ctx.settle(*propagate(x))


class ZBoxLinear(Linear):
    """The rule of input layers, Eq. 10: bounds are the sample's extremes unless given."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = "z_box"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, _ = ctx.saved
        low, high = bounds_of(ctx, x)
        return ctx.settle(*ctx.ops.relprop_zbox_linear(x, weight, low, high, *relevance))


class FirstLinear(Linear):
    """The first step, Eqs. 5-6: the logit is shared by absolute influence."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = f"first_{site.variant.first_step}"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, bias = ctx.saved
        # Relevance starts as the logit at the target and 0 elsewhere; it has been moved, not mixed.
        start = ctx.materialise(relevance)
        target = start.abs().argmax(1)
        score = start.gather(1, target[:, None])[:, 0]
        rule = self.site.variant.first_step
        return ctx.settle(*ctx.ops.relprop_first_linear(x, weight, bias, target, score, rule))
