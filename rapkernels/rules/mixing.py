"""Weighted sums over positions, the weights being constants: attention and resampling."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph, Node, Ref, bound_refs, map_refs
from rapkernels.reference._shares import share, stabilized
from rapkernels.relevance import Relevance, saturate
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.gates import weighs
from rapkernels.rules.squares import keep_for_squares, reads_output, share_squares


class Mixing(Rule):
    """Shares by contribution to the weighted sum, as an average does.

    The sum and its transpose are the operation itself and its vector-Jacobian product, both for the
    shares of the signal in place of the signal.
    """

    family: ClassVar[str] = "pool"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._sharing = site.method.sharing
        self.name = self._sharing.pool
        carried = self.carried(site.graph, site.node)
        if len(carried) != 1 or list(site.inputs).count(carried[0]) != 1:
            raise NoRuleError(
                "it multiplies values that both carry relevance, and neither is the weights of "
                'attention: attention="attnlrp" has a rule for that'
            )
        (self._signal,) = carried
        self.fresh = not reads_output(site)

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        result = super().forward(ctx, *args, **kwargs)
        ctx.save(args, kwargs, keep_for_squares(self.site, result))
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> list[Relevance | None]:
        args, kwargs, output = ctx.saved
        relevance = share_squares(ctx, self.site, output, relevance)
        incoming = ctx.materialise(relevance)
        values = dict(bound_refs((self.node.args, self.node.kwargs), (args, kwargs)))
        x = values[self._signal]
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight = share(x.to(dtype), self._sharing.pool)
        known = {
            name: value.to(dtype) if _is_floating(value) else value
            for name, value in values.items()
        }
        with torch.enable_grad():
            leaf = weight.detach().requires_grad_()
            whole = self._sum(known | {self._signal: leaf})
            divisor, added = stabilized(whole.detach(), self._sharing.stabilizer)
            met = divisor != 0
            quotient = torch.where(met, incoming.to(dtype) / torch.where(met, divisor, 1), 0)
            (transposed,) = torch.autograd.grad(whole, leaf, quotient)
        if ctx.wants_absorbed:
            taken = torch.where(met, quotient * added, incoming.to(dtype))
            ctx.absorb(taken.to(torch.float64).flatten(1).sum(1))
        state = Relevance(saturate(weight * transposed, x.dtype))
        return [state if name == self._signal else None for name in self.site.inputs]

    def _sum(self, values: dict[str, Any]) -> Tensor:
        """The weighted sum, for shares in the place of the signal."""
        result: Tensor = self.node.run(values)
        return result


class Resampling(Mixing):
    """Interpolation, and other sums of one activation with weights of their own."""

    @classmethod
    @override
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        return graph.activations(node)


class Bicubic(Resampling):
    """Bicubic interpolation, whose weights have both signs: messages count by their magnitude."""

    family: ClassVar[str] = "bicubic"

    @override
    def _sum(self, values: dict[str, Any]) -> Tensor:
        if self._sharing.pool == "ratio":
            return super()._sum(values)
        x, size, aligned, factors = self._arguments(values)
        height, width = (
            _bicubic_matrix(x, dim, out, aligned, None if factors is None else factors[dim])
            for dim, out in enumerate(size)
        )
        return torch.einsum("oh,nchw,pw->ncop", height.abs(), x, width.abs())

    def _arguments(self, values: dict[str, Any]) -> tuple[Tensor, Any, bool, Any]:
        arguments = self.node.arguments
        x = values[self._signal]
        factors = arguments["scale_factors"]
        size = arguments["output_size"]
        if size is None:
            size = [int(n * factor) for n, factor in zip(x.shape[2:], factors, strict=True)]
        else:
            size, factors = map_refs(size, values.__getitem__), None
        return x, size, bool(arguments["align_corners"]), factors


def _bicubic_matrix(x: Tensor, dim: int, out: int, aligned: bool, factor: float | None) -> Tensor:
    """``(O, I)``: bicubic interpolation along one dimension of an image."""
    entries = torch.eye(x.shape[2 + dim], dtype=x.dtype, device=x.device)[None, :, :, None]
    resize = torch.ops.aten.upsample_bicubic2d.default
    weights: Tensor = resize(entries, [out, 1], aligned, factor, None)[0, :, :, 0]
    return weights.t()


class Attention(Mixing):
    """Scaled dot-product attention: the weights are constants, the values take the relevance."""

    _values: ClassVar[str] = "value"

    @classmethod
    @override
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        value = node.arguments.get(cls._values)
        return (value.name,) if isinstance(value, Ref) and graph.is_activation(value.name) else ()


class Sampling(Attention):
    """Values read at places between the entries, which are constants (``grid_sample``)."""

    _values = "input"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.node.arguments["interpolation_mode"] == 2:
            raise NoRuleError("grid_sample has a rule for the modes bilinear and nearest only")


class WeightedSum(Mixing):
    """A matrix product of attention weights, which are constants, and values."""

    @classmethod
    @override
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        read = graph.activations(node)
        gates = [name for name in read if weighs(graph, name)]
        return tuple(name for name in read if name not in gates) if gates else read

    @override
    def _sum(self, values: dict[str, Any]) -> Tensor:
        """Weights that a layer has mixed may be negative: they count by their magnitude."""
        if self._sharing.pool != "ratio":
            weights = {
                name: values[name].abs() for name in self.site.inputs if name != self._signal
            }
            values = values | weights
        return super()._sum(values)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
