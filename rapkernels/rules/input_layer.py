"""The z-box rule of the input layer (Eq. 10 of the RAP paper)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context
from rapkernels.rules.conv import Convolution
from rapkernels.rules.linear import Linear


class ZBoxConvolution(Convolution):
    """The z-box rule of a convolution: bounds are the sample's extremes unless given."""

    name = "z_box"
    keeps_z = False

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, _, _ = self.kept(ctx)
        low, high = bounds_of(ctx, x)
        return ctx.settle(
            *ctx.ops.relprop_zbox_conv(x, weight, low, high, *relevance, *self.geometry)
        )


class ZBoxLinear(Linear):
    """The z-box rule of a linear layer: bounds are the sample's extremes unless given."""

    name = "z_box"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, *_ = ctx.saved
        low, high = bounds_of(ctx, x)
        return ctx.settle(*ctx.ops.relprop_zbox_linear(x, weight, low, high, *relevance))


def bounds_of(ctx: Context, x: Tensor) -> tuple[Tensor, Tensor]:
    """The given bounds of an input layer's input, or the extremes of each sample."""
    if ctx.bounds is not None:
        return ctx.bounds
    dimensions = tuple(range(1, x.dim()))
    return x.amin(dimensions, keepdim=True), x.amax(dimensions, keepdim=True)
