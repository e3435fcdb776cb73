"""Max and average pooling, and means and sums over dimensions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Rule, Site


class _Pool(Rule):
    family: ClassVar[str] = "pool"
    fresh = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.node.index not in (None, 0):
            raise NoRuleError("the indices of a pool carry no relevance")
        self.dimensions = len(site.node.shape) - 2
        if self.dimensions not in (1, 2, 3):
            raise NoRuleError("pooling needs a batch and a channel dimension")

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        ctx.save(args[0])
        return super().forward(ctx, *args, **kwargs)

    def _list(self, name: str) -> list[int]:
        value = self.node.arguments[name]
        values = [value] if isinstance(value, int) else list(value)
        return values * self.dimensions if len(values) == 1 else values

    def _window(self) -> tuple[list[int], list[int], list[int]]:
        kernel = self._list("kernel_size")
        return kernel, self._list("stride") or kernel, self._list("padding")


class MaxPool(_Pool):
    """The winner takes all; windows whose output is exactly 0 absorb."""

    name = "max"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        arguments = *self._window(), self._list("dilation"), self.node.arguments["ceil_mode"]
        return ctx.settle(*ctx.ops.relprop_max_pool(ctx.saved[0], *relevance, *arguments))


class AdaptiveMaxPool(_Pool):
    """The winner takes all; windows whose output is exactly 0 absorb."""

    name = "max"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        return ctx.settle(*ctx.ops.relprop_adaptive_max_pool(ctx.saved[0], *relevance))


class AveragePool(_Pool):
    """Shares by contribution to the average."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = site.variant.pool

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        arguments = *self._window(), self.node.arguments["ceil_mode"], self.name
        return ctx.settle(*ctx.ops.relprop_avg_pool(ctx.saved[0], *relevance, *arguments))


class AdaptiveAveragePool(_Pool):
    """Shares by contribution to the average."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = site.variant.pool

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x = ctx.saved[0]
        return ctx.settle(*ctx.ops.relprop_adaptive_avg_pool(x, *relevance, self.name))


class Reduction(Rule):
    """Mean or sum over dimensions: an average pool to size 1 over them."""

    family: ClassVar[str] = "pool"
    fresh = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = site.variant.pool
        rank = len(site.graph.shape_of(site.inputs[0]))
        given = site.node.arguments["dim"]
        dims = range(rank) if given is None or given == [] else given
        self._reduced = sorted(
            {int(dim) % rank for dim in ([dims] if isinstance(dims, int) else dims)}
        )
        if 0 in self._reduced:
            raise NoRuleError("it reduces over the batch dimension")
        self._kept = [dim for dim in range(1, rank) if dim not in self._reduced]

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        ctx.save(args[0])
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x: Tensor = ctx.saved[0]
        order = [0, *self._kept, *self._reduced]
        if len(self._kept) == 1 and len(self._reduced) <= 3 and order == sorted(order):
            return self._share(ctx, x, relevance)
        moved = x.permute(order)
        kept = math.prod(x.shape[dim] for dim in self._kept)
        state = self._share(ctx, moved.reshape(x.shape[0], kept, -1), relevance)
        back = [order.index(dim) for dim in range(x.dim())]
        return state._replace(values=state.values.reshape(moved.shape).permute(back))

    def _share(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        """Share the relevance of each channel among all positions of ``x``, ``(N, C, *size)``."""
        values = relevance.values.reshape(*x.shape[:2], *[1] * (x.dim() - 2))
        result = ctx.ops.relprop_adaptive_avg_pool(x, values, *relevance[1:], self.name)
        return ctx.settle(*result)
