"""Max and average pooling, and means and sums over dimensions."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.squares import keep_for_squares, reads_output, share_squares


class _Pool(Rule):
    family: ClassVar[str] = "pool"
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._sharing = site.method.sharing
        self.fresh = not reads_output(site)
        if site.node.index not in (None, 0):
            raise NoRuleError("the indices of a pool carry no relevance")
        rank = len(site.node.shape)
        found = re.search(r"pool(\d)d", site.node.operation)
        self.dimensions = rank - 2 if found is None else int(found[1])
        # (N, *size): torch takes the samples for channels.
        self._lacks_channels = rank == self.dimensions + 1
        if self.dimensions not in (1, 2, 3):
            raise NoRuleError("pooling needs a batch and a channel dimension")

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        result = super().forward(ctx, *args, **kwargs)
        ctx.save(args[0], keep_for_squares(self.site, result))
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, output = ctx.saved
        relevance = share_squares(ctx, self.site, output, relevance)
        if not self._lacks_channels:
            return self._share(ctx, x, relevance)
        relevance = relevance._replace(values=relevance.values.unsqueeze(1))
        state = self._share(ctx, x.unsqueeze(1), relevance)
        return state._replace(values=state.values.squeeze(1))

    def _share(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        raise NotImplementedError

    def _list(self, name: str) -> list[int]:
        value = self.node.arguments[name]
        values = [value] if isinstance(value, int) else list(value)
        return values * self.dimensions if len(values) == 1 else values

    def _window(self) -> tuple[list[int], list[int], list[int]]:
        kernel = self._list("kernel_size")
        return kernel, self._list("stride") or kernel, self._list("padding")


class _WinnerPool(_Pool):
    """The winner takes all; windows whose output is exactly 0 absorb where the method says so."""

    name = "max"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._clamps = self._sharing.positive_part and site.inputs[0] not in site.nonnegative

    def _competing(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) if self._clamps else x


class MaxPool(_WinnerPool):
    """Max pooling by windows."""

    @override
    def _share(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        arguments = *self._window(), self._list("dilation"), self.node.arguments["ceil_mode"]
        return ctx.settle(
            *ctx.ops.relprop_max_pool(
                self._competing(x), *relevance, *arguments, self._sharing.absorb_zeros
            )
        )


class AdaptiveMaxPool(_WinnerPool):
    """Max pooling to a size."""

    @override
    def _share(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        return ctx.settle(
            *ctx.ops.relprop_adaptive_max_pool(
                self._competing(x), *relevance, self._sharing.absorb_zeros
            )
        )


class AveragePool(_Pool):
    """Shares by contribution to the average."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = self._sharing.pool

    @override
    def _share(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        kernel, stride, padding = self._window()
        # A window may reach over all there is and further.
        reach = (size + 2 * pad for size, pad in zip(x.shape[2:], padding, strict=True))
        kernel = [min(extent, most) for extent, most in zip(kernel, reach, strict=True)]
        arguments = kernel, stride, padding, self.node.arguments["ceil_mode"], self._sharing.pool
        override = self.node.arguments.get("divisor_override")
        stabilizer = self._sharing.stabilizer * (override / math.prod(kernel) if override else 1)
        return ctx.settle(*ctx.ops.relprop_avg_pool(x, *relevance, *arguments, stabilizer))


class AdaptiveAveragePool(_Pool):
    """Shares by contribution to the average."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.name = self._sharing.pool

    @override
    def _share(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        arguments = self._sharing.pool, self._sharing.stabilizer
        return ctx.settle(*ctx.ops.relprop_adaptive_avg_pool(x, *relevance, *arguments))


class Reduction(Rule):
    """Mean or sum over dimensions: an average pool to size 1 over them."""

    family: ClassVar[str] = "pool"
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._sharing = site.method.sharing
        self.name = self._sharing.pool
        self.fresh = not reads_output(site)
        rank = len(site.graph.shape_of(site.inputs[0]))
        given = site.node.arguments["dim"]
        dims = range(rank) if given is None or given == [] else given
        self._reduced = sorted(
            {int(dim) % rank for dim in ([dims] if isinstance(dims, int) else dims)}
        )
        self._batch = site.batch_dim(site.inputs[0])
        if self._batch in self._reduced:
            raise NoRuleError("it reduces over the batch dimension")
        self.takes_targets = self._batch == 0
        kept = set(range(rank)) - {self._batch, *self._reduced}
        self._order = [self._batch, *sorted(kept), *self._reduced]
        self._is_mean = site.node.operation.startswith("aten.mean.")

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        result = super().forward(ctx, *args, **kwargs)
        ctx.save(args[0], keep_for_squares(self.site, result))
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, output = ctx.saved
        relevance = share_squares(ctx, self.site, output, relevance)
        order, reduced = self._order, len(self._reduced)
        if x.dim() - reduced == 2 and reduced <= 3 and order == sorted(order):
            return self._share(ctx, x, relevance)
        if self._batch:
            # One target; what is kept follows the batch, whether the output has it there or not.
            values = ctx.materialise(relevance)
            relevance = Relevance(values.reshape(self._kept(x)).movedim(self._batch, 0))
        moved = x.permute(order)
        kept = math.prod(x.shape[dim] for dim in order[1 : x.dim() - reduced])
        state = self._share(ctx, moved.reshape(moved.shape[0], kept, -1), relevance)
        back = [order.index(dim) for dim in range(x.dim())]
        if self._batch:
            state = Relevance(ctx.materialise(state))
        return state._replace(values=state.values.reshape(-1, *moved.shape[1:]).permute(back))

    def _kept(self, x: Tensor) -> list[int]:
        """The shape of ``x`` with 1 where it is reduced."""
        return [1 if dim in self._reduced else size for dim, size in enumerate(x.shape)]

    def _share(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        """Share the relevance of each channel among all positions of ``x``, ``(N, C, *size)``."""
        values = relevance.values.reshape(-1, x.shape[1], *[1] * (x.dim() - 2))
        return self._pool(ctx, x, relevance._replace(values=values))

    def _pool(self, ctx: Context, x: Tensor, relevance: Relevance) -> Relevance:
        """Share the relevance ``(T * N, C, 1...)`` of the whole of each channel."""
        entries = 1 if self._is_mean else math.prod(x.shape[2:])
        stabilizer = self._sharing.stabilizer / entries
        arguments = self._sharing.pool, stabilizer
        return ctx.settle(*ctx.ops.relprop_adaptive_avg_pool(x, *relevance, *arguments))
