"""Sharing Ratio Decomposition: the rules of its layers."""

from __future__ import annotations

from typing_extensions import override

from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, Rule, Site
from rapkernels.rules.conv import Convolution
from rapkernels.rules.linear import Linear


class SharingConvolution(Convolution):
    """Sharing ratios against the pre-activation vectors, with the share of the bias."""

    name = "sharing_ratio"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, z, bias = ctx.saved
        weight = self.folded_weight(ctx, weight, x)
        return ctx.settle(
            *ctx.ops.relprop_sharing_conv(x, weight, bias, z, *relevance, *self.geometry(weight))
        )


class SharingLinear(Linear):
    """Sharing ratios of a linear layer: a convolution at a single position."""

    name = "sharing_ratio"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, bias = ctx.saved
        return ctx.settle(*ctx.ops.relprop_sharing_linear(x, weight, bias, *relevance))


_RULES: dict[type[Rule], type[Rule]] = {Convolution: SharingConvolution, Linear: SharingLinear}


def choose_sharing_ratio(operation: type[Rule], site: Site) -> type[Rule]:  # noqa: ARG001
    """The method's own rule of convolutions and linear layers."""
    return _RULES.get(operation, operation)
