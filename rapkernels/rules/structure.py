"""Operations that move, repeat or leave out entries: relevance moves back the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.fusion import pad_amounts
from rapkernels.graph import bound_refs, refs
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, Rule, Site
from rapkernels.rules.squares import keep_for_squares, reads_output, share_squares

# They put zeros where nothing is read.
_FILLS = {f"aten.{name}.default" for name in ("tril", "triu", "im2col")}


class Structure(Rule):
    """Any linear operation whose output entries are copies of input entries.

    Relevance goes back through the operation's vector-Jacobian product, so that what an entry's
    copies receive is summed and an entry that is not read gets 0.
    """

    name = "structure"
    family: ClassVar[str] = "structure"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        # Entries of constants can be in the output: what they get is lost.
        self.loses = any(
            name not in site.inputs and site.graph.shape_of(name)
            for name in refs((site.node.args, site.node.kwargs))
        )
        self.loses |= site.node.operation in _FILLS

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        values = dict(bound_refs((self.node.args, self.node.kwargs), (args, kwargs)))
        for name in self.site.inputs:
            # Backward needs its shape and type alone; to keep the values would cost memory.
            values[name] = values[name].new_empty(()).expand(values[name].shape)
        ctx.save(values)
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Sequence[Relevance | None]:
        (values,) = ctx.saved
        names = list(dict.fromkeys(self.site.inputs))
        if not all(self.keeps_samples(values[name].shape) for name in names):
            relevance = Relevance(ctx.materialise(relevance))
        moved = self._transpose(values, names, relevance.values)
        states = {
            name: relevance._replace(values=part) for name, part in zip(names, moved, strict=True)
        }
        if self.loses:
            absorb_difference(ctx, relevance, list(states.values()))
        # An input that is read twice gets all of its relevance at the first mention.
        return [states.pop(name, None) for name in self.site.inputs]

    def keeps_samples(self, shape: torch.Size) -> bool:  # noqa: ARG002
        """Whether entries stay in their sample and are neither repeated nor summed.

        The pending shift and scale are then those of the input; else they are applied first.
        """
        return False

    def _transpose(
        self, values: dict[str, Any], names: list[str], moved: Tensor
    ) -> Sequence[Tensor]:
        with torch.enable_grad():
            leaves = {
                name: torch.zeros_like(
                    values[name], memory_format=torch.contiguous_format
                ).requires_grad_()
                for name in names
            }
            result = self.node.run(values | leaves)
        return torch.autograd.grad(result, list(leaves.values()), moved, materialize_grads=True)


class Reshape(Structure):
    """A new shape for the same entries in the same order."""

    takes_targets = True

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        ctx.save(args[0].shape)
        return Rule.forward(self, ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Sequence[Relevance | None]:
        shape = (ctx.targets * ctx.saved[0][0], *ctx.saved[0][1:])
        if shape[0] == relevance.values.shape[0]:
            return [relevance._replace(values=relevance.values.reshape(shape))]
        return [Relevance(ctx.materialise(relevance).reshape(shape))]


class Permute(Structure):
    """A new order of the dimensions."""

    takes_targets = True

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        result = Rule.forward(self, ctx, *args, **kwargs)
        rank = args[0].dim()
        if self.node.operation == "aten.permute.default":
            order = [int(dim) % rank for dim in args[1]]
        elif len(args) == 1:
            order = list(reversed(range(rank)))
        else:
            order = list(range(rank))
            first, second = args[1] % rank, args[2] % rank
            order[first], order[second] = second, first
        ctx.save(order)
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Sequence[Relevance | None]:
        (order,) = ctx.saved
        back = [order.index(dim) for dim in range(len(order))]
        if order[:1] == [0]:
            return [relevance._replace(values=relevance.values.permute(back))]
        values = ctx.materialise(relevance)
        values = values.view(ctx.targets, -1, *values.shape[1:])
        return [Relevance(values.permute(0, *(dim + 1 for dim in back)).flatten(0, 1))]


class Part(Structure):
    """A part along one dimension: what is not read gets 0."""

    @override
    def keeps_samples(self, shape: torch.Size) -> bool:
        rank = len(shape)
        return int(self.node.arguments.get("dim", 0)) % rank != 0


class Concatenation(Structure):
    """Each input gets its part; in the authors' code not where the input is exactly 0."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._drops = site.method.drop_at_zero
        self.fresh = not reads_output(site)
        if self._drops:
            self.name = "structure_nonzero"
        dim = int(site.node.arguments["dim"]) % len(site.node.shape)
        self.takes_targets = dim != 0 and not self._drops

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        tensors: list[Tensor] = args[0]
        result = Rule.forward(self, ctx, *args, **kwargs)
        dim = int(self.node.arguments["dim"]) % result.dim()
        zeros = result == 0 if self._drops else None
        sizes = [tensor.shape[dim] if tensor.dim() > dim else 0 for tensor in tensors]
        ctx.save(dim, sizes, zeros, keep_for_squares(self.site, result))
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Sequence[Relevance | None]:
        dim, sizes, zeros, output = ctx.saved
        relevance = share_squares(ctx, self.site, output, relevance)
        if zeros is not None:
            kept = relevance._replace(values=relevance.values.masked_fill(zeros, 0))
            absorb_difference(ctx, relevance, [kept])
            relevance = kept
        state = relevance if dim != 0 else Relevance(ctx.materialise(relevance))
        names = [reference.name for reference in self.node.args[0]]
        parts = zip(names, state.values.split_with_sizes(sizes, dim), strict=True)
        states = [state._replace(values=part) for name, part in parts if name in self.site.inputs]
        if self.loses:
            absorb_difference(ctx, state, states)
        return states


def absorb_difference(ctx: Context, before: Relevance, after: Sequence[Relevance]) -> None:
    """Count what was left out as absorbed."""
    if not ctx.wants_absorbed:
        return
    totals = [before.total(), *(-state.total() for state in after)]
    if any(total.shape != totals[0].shape for total in totals):
        # Dimension 0 is not the batch everywhere, so that samples cannot be told apart.
        samples = totals[0].shape[0]
        totals = [(total.sum() / samples).expand(samples) for total in totals]
    ctx.absorb(torch.stack(totals).sum(0))


class Pad(Structure):
    """A pad that no convolution takes in; what falls on a constant border is absorbed."""

    fuses = "pad"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.loses = site.node.arguments.get("mode", "constant") == "constant"
        rank = len(site.node.shape)
        self._touches_batch = any(list(pad_amounts(site.node))[2 * (rank - 1) :])

    @classmethod
    @override
    def at(cls, site: Site) -> Rule:
        """A zero pad that its convolution has taken in does nothing more."""
        if site.node.arguments.get("mode", "constant") in ("reflect", "replicate"):
            return BorderPad(site)
        return FoldedPad(site) if site.node.name in site.fusion.absorbed else cls(site)

    @override
    def keeps_samples(self, shape: torch.Size) -> bool:
        return self.loses and not self._touches_batch


class BorderPad(Structure):
    """A pad with copies of entries: each gets back what its copies receive, in a fixed order.

    torch's own derivative adds in any order on a GPU, so that bits would differ between calls.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        amounts = list(pad_amounts(site.node))
        # (low, high) per dimension, the last dimension first.
        self._pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
        named = site.node.operation.partition(".")[2]
        mode = site.node.arguments.get("mode") or named.partition("_")[0]
        self._reflects = mode in ("reflect", "reflection")

    @override
    def _transpose(
        self, values: dict[str, Any], names: list[str], moved: Tensor
    ) -> Sequence[Tensor]:
        if any(low < 0 or high < 0 for low, high in self._pairs):
            return super()._transpose(values, names, moved)
        for dim, (low, high) in enumerate(self._pairs, start=1):
            moved = self._fold(moved, -dim, low, high)
        return [moved]

    def _fold(self, moved: Tensor, dim: int, low: int, high: int) -> Tensor:
        size = moved.shape[dim] - low - high
        first, inner, last = moved.split_with_sizes([low, size, high], dim)
        inner = inner.clone()
        if self._reflects:
            inner.narrow(dim, 1, low).add_(first.flip(dim))
            inner.narrow(dim, size - 1 - high, high).add_(last.flip(dim))
        else:
            inner.narrow(dim, 0, 1).add_(first.sum(dim, keepdim=True))
            inner.narrow(dim, size - 1, 1).add_(last.sum(dim, keepdim=True))
        return inner


class FoldedPad(Structure):
    """What the convolution after it does itself."""

    name = "folded"
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._amounts = list(pad_amounts(site.node))
        self.fresh = False

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = args[0]
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Sequence[Relevance | None]:
        return [relevance]

    @override
    def at_output(self, relevance: Tensor) -> Tensor:
        """The border is 0: its messages are."""
        return torch.nn.functional.pad(relevance, self._amounts)
