"""Attribution Equilibrium: the rules of its layers."""

from __future__ import annotations

from typing_extensions import override

from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, Rule, Site
from rapkernels.rules.conv import Convolution
from rapkernels.rules.input_layer import ZBoxConvolution, ZBoxLinear
from rapkernels.rules.linear import Linear


class EquilibriumConvolution(Convolution):
    """Hedged contributions, the uniform shift, and the active and inactive terms."""

    name = "equilibrium"
    keeps_z = False

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, _, _ = self.kept(ctx)
        ratio: float = self.site.settings
        return ctx.settle(
            *ctx.ops.relprop_equilibrium_conv(x, weight, *relevance, *self.geometry, ratio)
        )


class EquilibriumLinear(Linear):
    """The balanced rule of 1x1 kernels."""

    name = "equilibrium"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, *_ = ctx.saved
        return ctx.settle(*ctx.ops.relprop_equilibrium_linear(x, weight, *relevance))


_INNER: dict[type[Rule], type[Rule]] = {
    Convolution: EquilibriumConvolution,
    Linear: EquilibriumLinear,
}
_INPUT: dict[type[Rule], type[Rule]] = {Convolution: ZBoxConvolution, Linear: ZBoxLinear}


def choose_equilibrium(operation: type[Rule], site: Site) -> type[Rule]:
    """The z-box rule for input layers, else the method's own."""
    rules = _INPUT if site.role == "input" else _INNER
    return rules.get(operation, operation)
