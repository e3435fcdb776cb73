"""BatchNorm: part of the convolution before it, or on its own."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from rapkernels.author import relprop_batchnorm_author
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.elementwise import Copy, Identity


class BatchNorm(Identity):
    """Relevance passes; in the authors' code not where ``x gamma`` is exactly 0."""

    family: ClassVar[str] = "batch_norm"
    fuses = "batch_norm"
    fresh = True

    def __init__(self, site: Site) -> None:
        if site.node.index not in (None, 0):
            raise NoRuleError("the statistics of a BatchNorm carry no relevance")
        arguments = site.node.arguments
        if arguments.get("training", False) or arguments["running_mean"] is None:
            raise NoRuleError("it normalises by the statistics of the batch, not by running ones")
        super().__init__(site)
        self._drops = site.method.drop_at_zero
        self.takes_targets = not self._drops
        self.name = "identity_nonzero" if self._drops else "identity"

    @classmethod
    @override
    def at(cls, site: Site) -> Rule:
        """A BatchNorm that its convolution has taken in does nothing more."""
        return Folded(site) if site.node.name in site.fusion.absorbed else cls(site)

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        if self._drops:
            ctx.save(args[0], args[1])
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        if not self._drops:
            return relevance
        x, gamma = ctx.saved
        return ctx.settle(*relprop_batchnorm_author(x, gamma, relevance))


class Folded(Copy):
    """What the convolution before has computed already."""

    name = "folded"
