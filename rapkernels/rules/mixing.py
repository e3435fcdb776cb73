"""Weighted sums over positions, the weights being constants: attention."""

from __future__ import annotations

from functools import partial, reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph, Node, Ref, bound_refs
from rapkernels.reference._shares import share, stabilized
from rapkernels.relevance import Relevance, saturate
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.gates import opens, origin, weighs
from rapkernels.rules.squares import keep_for_squares, reads_output, share_squares

_PRODUCTS = {f"aten.{name}.default" for name in ("matmul", "bmm", "mm", "einsum")}


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
        if len(carried) != 1 or self._reads_twice(carried[0]):
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
        known = {
            name: value.to(dtype) if _is_floating(value) else value
            for name, value in values.items()
        }
        with torch.enable_grad():
            terms = [
                (others, weight.detach().requires_grad_())
                for others, weight in self._messages(known, known[self._signal])
            ]
            whole = reduce(add, (self._mix(others, leaf) for others, leaf in terms))
            divisor, added = stabilized(whole.detach(), self._sharing.stabilizer)
            met = divisor != 0
            quotient = torch.where(met, incoming.to(dtype) / torch.where(met, divisor, 1), 0)
            leaves = [leaf for _, leaf in terms]
            transposed = torch.autograd.grad(whole, leaves, quotient)
        if ctx.wants_absorbed:
            taken = torch.where(met, quotient * added, incoming.to(dtype))
            ctx.absorb(taken.to(torch.float64).flatten(1).sum(1))
        parts = zip(leaves, transposed, strict=True)
        shared = reduce(add, (leaf.detach() * part for leaf, part in parts))
        states = {self._signal: Relevance(saturate(shared, x.dtype))}
        return [states.pop(name, None) for name in self.site.inputs]

    def _reads_twice(self, name: str) -> bool:
        return self.site.inputs.count(name) != 1

    def _mix(self, known: dict[str, Any], signal: Tensor) -> Tensor:
        """The operation with another value in the place of the signal's."""
        result: Tensor = self.node.run(known | {self._signal: signal})
        return result

    def _messages(self, known: dict[str, Any], x: Tensor) -> list[tuple[dict[str, Any], Tensor]]:
        """Values whose mixes add up to the sums of the shares; the weights are not negative."""
        return [(known, share(x, self._sharing.pool))]


class Attention(Mixing):
    """Scaled dot-product attention: the weights are constants, the values take the relevance."""

    _values: ClassVar[str] = "value"

    @classmethod
    @override
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        value = node.arguments.get(cls._values)
        return (value.name,) if isinstance(value, Ref) and graph.is_activation(value.name) else ()

    @override
    def _reads_twice(self, name: str) -> bool:
        # Queries and keys may be the same tensor as the values.
        return False

    @override
    def _mix(self, known: dict[str, Any], signal: Tensor) -> Tensor:
        args, kwargs = self.node.bind(known)
        place = [*self.node.arguments].index(self._values)
        if place < len(args):
            args = (*args[:place], signal, *args[place + 1 :])
        else:
            kwargs[self._values] = signal
        result: Tensor = self.node.call(*args, **kwargs)
        return result


class WeightedSum(Mixing):
    """A matrix product of values and weights, which are constants: of attention, or parameters."""

    @classmethod
    @override
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        signals = _unweighed(graph, node)
        if len(signals) > 1:
            # Factorised attention: queries read out what the softmax of the keys has mixed.
            return tuple(name for name in signals if _is_mixture(graph, name)) or signals
        return signals

    @override
    def _messages(self, known: dict[str, Any], x: Tensor) -> list[tuple[dict[str, Any], Tensor]]:
        """Messages are signed by both factors where the weights can be negative."""
        weights = [name for name in known if name != self._signal and _is_floating(known[name])]
        if self._sharing.pool == "ratio" or self.site.nonnegative.issuperset(weights):
            return super()._messages(known, x)

        def signed(sign: int) -> dict[str, Any]:
            return known | {name: (sign * known[name]).clamp(min=0) for name in weights}

        if self._sharing.pool == "absolute":
            return [(known | {name: known[name].abs() for name in weights}, x.abs())]
        return [(signed(sign), share(sign * x, self._sharing.pool)) for sign in (1, -1)]


def _unweighed(graph: Graph, node: Node) -> tuple[str, ...]:
    """The factors that are no weights: all where that does not tell them apart."""
    read = graph.activations(node)
    # A softmax weighs what comes from a sigmoid; what no activation weighs is the signal.
    for is_weight in (partial(opens, mixed=True), weighs):
        signals = tuple(name for name in read if not is_weight(graph, name))
        if signals:
            return signals
    return read


def _is_mixture(graph: Graph, name: str) -> bool:
    """Whether a value is a product of a signal and weights, up to structure and constants."""
    node = origin(graph, name)
    if node is None or node.operation not in _PRODUCTS:
        return False
    return len(graph.activations(node)) == 2 and len(_unweighed(graph, node)) == 1


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
