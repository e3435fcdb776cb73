"""Gates, and which factor of a product is one: it scales the other factor, the signal.

A gate is a constant to relevance, and so is all that leads to it: the weights of squeeze-and-
excitation, of attention, of a gated linear unit.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph, Node, bound_refs
from rapkernels.logits import SOFTMAX
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, Rule, Site
from rapkernels.rules.elementwise import cast

PRODUCTS = ("aten.mul.Tensor",)
# Bounded between 0 and 1: what they return says how much of something passes.
_OPENINGS = set(SOFTMAX) | {
    f"aten.{name}.default" for name in ("sigmoid", "hardsigmoid", "special_expit")
}
_NONLINEAR = {
    f"aten.{name}.default"
    for name in (
        *("silu", "gelu", "relu", "relu6", "hardswish", "hardtanh", "tanh", "mish", "elu", "clamp"),
        *("leaky_relu", "softplus", "erf", "exp", "sqrt", "rsqrt", "reciprocal"),
    )
}
# A gate stays one through these.
_TRANSPARENT = {
    f"aten.{name}"
    for name in (
        *("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints"),
        *("permute.default", "transpose.int", "t.default", "mT.default", "unsqueeze.default"),
        *("squeeze.dim", "squeeze.default", "squeeze.dims", "expand.default", "expand_as.default"),
        *("contiguous.default", "clone.default", "alias.default", "detach.default"),
        *("dropout.default", "to.dtype", "_to_copy.default", "select.int", "slice.Tensor"),
        *("mul.Scalar", "div.Scalar", "add.Scalar", "upsample_nearest2d.vec"),
        *("upsample_bilinear2d.vec", "pad.default", "constant_pad_nd.default"),
    )
}
# Attention with talking heads mixes its weights by a layer over the heads.
_MIXES = {"aten.linear.default", "aten.conv2d.default", "aten.convolution.default"}
_AFFINE = {"aten.mul.Tensor", "aten.div.Tensor", "aten.add.Tensor", "aten.sub.Tensor"}


class Gate(Rule):
    """A signal times a gate, or divided by one: the signal takes all relevance."""

    name = "gate"
    family: ClassVar[str] = "product"
    fresh = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        (self._signal,) = self.carried(site.graph, site.node)
        # A signal that is repeated over its gate sums its relevance, target by target.
        self.takes_targets = site.graph.shape_of(self._signal) == site.node.shape

    @classmethod
    @override
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        return signal(graph, node) if node.operation in PRODUCTS else graph.activations(node)[:1]

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        signal = dict(bound_refs(self.node.args, args))[self._signal]
        ctx.save(signal.shape, signal.dtype)
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> list[Relevance | None]:
        shape, dtype = ctx.saved
        if not self.takes_targets:
            relevance = Relevance(ctx.materialise(relevance).sum_to_size(shape))
        # A value divided by itself is read twice.
        states = {self._signal: cast(ctx, relevance, dtype)}
        return [states.pop(name, None) for name in self.site.inputs]


def signal(graph: Graph, node: Node) -> tuple[str, ...]:
    """The factors of a product of two activations that relevance goes to.

    One of them where the other is a gate: it comes from a sigmoid or softmax, or, where neither
    does, it is spread over the positions of the other, or alone comes from a nonlinearity, as in
    gated linear units. Both where there is no telling.
    """
    first, second = graph.activations(node)
    for test in (opens, lambda g, name: spreads(g, name, node), bends):
        gates = test(graph, first), test(graph, second)
        if gates[0] != gates[1]:
            return (second,) if gates[0] else (first,)
    return first, second


def opens(graph: Graph, name: str, mixed: bool = False) -> bool:
    """Whether a value is that of a sigmoid or softmax, up to structure and constants.

    Args:
        graph: the graph.
        name: the value.
        mixed: whether layers may have mixed its channels.
    """
    return _operation(graph, name, _MIXES if mixed else ()) in _OPENINGS


def weighs(graph: Graph, name: str) -> bool:
    """Whether a value is that of a softmax, also where layers mixed its channels."""
    return _operation(graph, name, _MIXES) in SOFTMAX


def bends(graph: Graph, name: str) -> bool:
    """Whether a value is that of a nonlinearity, up to structure and constants."""
    return _operation(graph, name) in _NONLINEAR


def spreads(graph: Graph, name: str, node: Node) -> bool:
    """Whether a factor is repeated over positions of the product."""
    return graph.shape_of(name) != node.shape


def origin(graph: Graph, name: str, more: Collection[str] = ()) -> Node | None:
    """What a value comes from, up to structure, constants and other operations; None: an input."""
    through = _TRANSPARENT | _AFFINE | set(more)
    while name in graph.nodes:
        node = graph.nodes[name]
        read = graph.activations(node)
        passes = node.operation in through
        if not passes or len(read) != 1:
            return node
        (name,) = read
    return None


def _operation(graph: Graph, name: str, more: Collection[str] = ()) -> str:
    node = origin(graph, name, more)
    return "" if node is None else node.operation
