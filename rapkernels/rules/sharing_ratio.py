"""Sharing Ratio Decomposition: the rules of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.reference._targets import for_each_target
from rapkernels.relevance import Relevance, saturate
from rapkernels.rules.base import Context, Rule, Site
from rapkernels.rules.conv import Convolution
from rapkernels.rules.linear import Linear
from rapkernels.rules.squares import reads_output, share_squares


class SharingConvolution(Convolution):
    """Sharing ratios against the pre-activation vectors, with the share of the bias."""

    name = "sharing_ratio"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, z, bias = self.kept(ctx)
        return ctx.settle(
            *ctx.ops.relprop_sharing_conv(x, weight, bias, z, *relevance, *self.geometry)
        )


class SharingLinear(Linear):
    """Sharing ratios of a linear layer: a convolution at a single position."""

    name = "sharing_ratio"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, _, bias, _ = ctx.saved
        return ctx.settle(*ctx.ops.relprop_sharing_linear(x, weight, bias, *relevance))


class SharingPositions(Linear):
    """A linear layer over L positions: attention whose weights are parameters, and a bias.

    Position j sends ``w_ij x_j + b_i / L`` to position i, vectors over the channels. With
    ``G_i = v_i R_i / |v_i|^2``, what it gets is ``<x_j, sum_i w_ij G_i> + sum_i b_i <1, G_i> / L``.
    """

    name = "sharing_ratio"
    fresh = False

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        reads_output(site)

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        result = super().forward(ctx, *args, **kwargs)
        x, weight, _, bias, _ = ctx.saved
        # Vectors are found in the value as it is, also where tokens come before samples.
        ctx.save(x.movedim(0, self._batch_dim), weight, bias, result)
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, bias, output = ctx.saved
        dtype = torch.promote_types(x.dtype, torch.float32)
        squares = ctx.materialise(share_squares(ctx, self.site, output, relevance)).to(dtype)
        vectors = for_each_target(output, squares).to(dtype)
        met = vectors != 0
        gradient = torch.where(met, squares / torch.where(met, vectors, 1), 0)
        shared = for_each_target(x, squares).to(dtype) * (gradient @ weight.to(dtype))
        if bias is not None:
            along = (gradient @ bias.to(dtype)).unsqueeze(-1)
            shared = shared + self._mean_of_channels(along) / x.shape[-1]
        return Relevance(saturate(shared, x.dtype))

    @override
    def propagate(self, ctx: Context, relevance: Relevance) -> list[Relevance | None]:
        return Rule.propagate(self, ctx, relevance)

    def _mean_of_channels(self, value: Tensor) -> Tensor:
        channels = self.site.channels
        assert channels is not None
        vectors = channels.vectors(value)
        return channels.restored(vectors.mean(1, keepdim=True).expand_as(vectors), value.shape)


_RULES: dict[type[Rule], type[Rule]] = {Convolution: SharingConvolution, Linear: SharingLinear}


def choose_sharing_ratio(operation: type[Rule], site: Site) -> type[Rule]:
    """The method's own rule of convolutions and linear layers."""
    channels = site.channels
    if operation is Linear and not (channels and channels.include_last(len(site.node.shape))):
        return SharingPositions
    return _RULES.get(operation, operation)
