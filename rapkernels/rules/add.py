"""Sums and differences: of two activations, and of one activation and a constant."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph, Node, Ref, bound_refs
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.elementwise import cast
from rapkernels.rules.gates import Gate
from rapkernels.rules.squares import keep_for_squares, reads_output, share_squares
from rapkernels.workspace import empty_like


class Add(Rule):
    """``a + alpha b`` or ``a - alpha b`` of two activations: shared by contribution."""

    family: ClassVar[str] = "add"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._sharing = site.method.sharing
        self.name = self._sharing.add
        self.fresh = not reads_output(site)
        # Terms that are broadcast sum their relevance, target by target.
        self.takes_targets = all(
            site.graph.shape_of(name) == site.node.shape for name in site.inputs
        )
        sign = -1 if site.node.operation.startswith("aten.sub.") else 1
        self._factor = sign * site.node.arguments.get("alpha", 1)

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        a, b = args[0], args[1]
        if a.shape == b.shape and a.dtype == b.dtype:
            result = torch.add(a, b, alpha=self._factor, out=empty_like(a))
        else:
            result = super().forward(ctx, *args, **kwargs)
        ctx.save(a, b, keep_for_squares(self.site, result))
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> tuple[Relevance, Relevance]:
        a, b, output = ctx.saved
        relevance = share_squares(ctx, self.site, output, relevance)
        shape = (relevance.values.shape[0] // ctx.targets, *relevance.values.shape[1:])
        scaled = b if self._factor == 1 else b * self._factor
        values_a, values_b, scale, absorbed = ctx.ops.relprop_add(
            a.expand(shape),
            scaled.expand(shape),
            *relevance,
            self._sharing.add,
            self._sharing.stabilizer,
        )
        ctx.absorb(absorbed)
        states = Relevance(values_a, None, scale), Relevance(values_b, None, scale)
        first, second = (
            state if x.shape == shape else Relevance(ctx.materialise(state).sum_to_size(x.shape))
            for state, x in zip(states, (a, b), strict=True)
        )
        return first, second


class Affine(Rule):
    """Add, subtract, multiply or divide by what does not depend on the input: relevance passes."""

    name = "identity"
    family: ClassVar[str] = "affine"
    fresh = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.takes_targets = site.graph.shape_of(site.inputs[0]) == site.node.shape
        if len(site.inputs) != 1:
            raise NoRuleError("it combines two values that both depend on the input")
        divisor = site.node.arguments.get("other")
        if site.node.operation.startswith("aten.div.") and divisor == Ref(site.inputs[0]):
            raise NoRuleError("it divides by a value that depends on the input")

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        x = dict(bound_refs(self.node.args, args))[self.site.inputs[0]]
        ctx.save(x.shape, x.dtype)
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        shape, dtype = ctx.saved
        if relevance.values.shape[1:] == shape[1:] and self.takes_targets:
            return cast(ctx, relevance, dtype)
        return Relevance(ctx.materialise(relevance).sum_to_size(shape).to(dtype))


class Centred(Gate):
    """What is left of a value less its own mean, which is a constant as all statistics are."""

    name = "identity"
    family: ClassVar[str] = "affine"


def choose_sum(graph: Graph, node: Node) -> type[Rule]:
    """Add where two activations meet, else Affine."""
    if len(graph.activations(node)) < 2:
        return Affine
    return Centred if _subtracts_its_mean(graph, node) else Add


def _subtracts_its_mean(graph: Graph, node: Node) -> bool:
    first, second = graph.activations(node)
    mean = graph.nodes.get(second)
    return (
        node.operation == "aten.sub.Tensor"
        and mean is not None
        and mean.operation == "aten.mean.dim"
        and graph.activations(mean) == (first,)
        and graph.shape_of(first) == node.shape
    )
