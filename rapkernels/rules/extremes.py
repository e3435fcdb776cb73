"""The largest and the smallest: over dimensions, and of two activations."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph, Node
from rapkernels.relevance import Relevance
from rapkernels.rules.add import Affine
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.pool import Reduction
from rapkernels.rules.squares import keep_for_squares, reads_output, share_squares


class Extremum(Reduction):
    """Maximum or minimum over dimensions: the first winner takes all, as in a max pool."""

    def __init__(self, site: Site) -> None:
        if site.node.index not in (None, 0):
            raise NoRuleError("the indices of a maximum carry no relevance")
        super().__init__(site)
        self._smallest = "min" in site.node.operation
        self.name = "min" if self._smallest else "max"
        positive = site.inputs[0] in site.nonnegative or self._smallest
        self._clamps = self._sharing.positive_part and not positive

    @override
    def _pool(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        competing = -x if self._smallest else x.clamp(min=0) if self._clamps else x
        absorbs = self._sharing.absorb_zeros
        return ctx.settle(*ctx.ops.relprop_adaptive_max_pool(competing, *relevance, absorbs))


class Larger(Rule):
    """``maximum`` or ``minimum`` of two activations: the winner takes all, equal ones half each."""

    family: ClassVar[str] = "pool"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = "max" if "max" in site.node.operation else "min"
        self.fresh = not reads_output(site)

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        result = super().forward(ctx, *args, **kwargs)
        shares = torch.sign(args[0] - args[1]).add_(1).mul_(0.5)
        ctx.save(
            shares if self.name == "max" else 1 - shares,
            (args[0].shape, args[1].shape),
            keep_for_squares(self.site, result),
        )
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> tuple[Relevance, Relevance]:
        share, (first, second), output = ctx.saved
        incoming = ctx.materialise(share_squares(ctx, self.site, output, relevance))
        taken = incoming * share
        return (
            Relevance(taken.sum_to_size(first)),
            Relevance((incoming - taken).sum_to_size(second)),
        )


def choose_larger(graph: Graph, node: Node) -> type[Rule]:
    """A constant that competes is a threshold, so that relevance passes."""
    return Larger if len(graph.activations(node)) == 2 else Affine
