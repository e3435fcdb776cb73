"""Products of two activations: a gate and a signal, or two factors of equal standing."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from rapkernels.graph import Graph, Node
from rapkernels.relevance import Relevance
from rapkernels.rules.add import Affine
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.gates import PRODUCTS, Gate, signal


class Product(Rule):
    """Two factors of equal standing: half of the relevance each (AttnLRP's uniform rule)."""

    name = "uniform"
    family: ClassVar[str] = "product"
    fresh = True
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if any(site.graph.shape_of(name) != site.node.shape for name in site.inputs):
            raise NoRuleError("its factors have different shapes, and neither is a gate")

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> tuple[Relevance, Relevance]:
        half = Relevance(ctx.materialise(relevance) / 2)
        return half, half


def choose_product(graph: Graph, node: Node) -> type[Rule]:
    """Affine where one factor is a constant, else by whether one of them is a gate."""
    read = graph.activations(node)
    if len(read) < 2:
        return Affine
    if node.operation not in PRODUCTS or (read[0] != read[1] and len(signal(graph, node)) == 1):
        return Gate
    return Product
