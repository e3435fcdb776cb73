"""Which values of a graph cannot be negative, whatever the input is."""

from __future__ import annotations

from typing import Any

from rapkernels.fusion import PADS, is_zero_pad
from rapkernels.graph import Graph, Node, Ref, refs
from rapkernels.logits import SOFTMAX

_ALWAYS = {
    f"aten.{name}"
    for name in (
        *("relu.default", "relu6.default", "sigmoid.default", "hardsigmoid.default"),
        *("softplus.default", "abs.default", "square.default", "exp.default"),
    )
} | set(SOFTMAX)
_PRESERVING_FAMILIES = {"structure", "pool"}
_CHOICES = {"mask", "condition", "index", "indices"}
_FILLING = {
    f"aten.{name}"
    for name in (
        *("masked_fill.Scalar", "masked_fill.Tensor"),
        *("where.self", "where.ScalarOther", "where.ScalarSelf"),
    )
}
_SUMS = {"aten.add.Tensor", "aten.add.Scalar"}
_PRODUCTS = {"aten.mul.Tensor", "aten.div.Tensor", "aten.mul.Scalar", "aten.div.Scalar"}


def nonnegative_values(graph: Graph, families: dict[str, str]) -> frozenset[str]:
    """Names of the values that are zero or positive for every input.

    Args:
        graph: the graph.
        families: node -> family of its rule, as in :func:`rapkernels.rules.family_of`.
    """
    known: set[str] = set()
    for node in graph.nodes.values():
        if node.kind == "activation" and _is_nonnegative(graph, node, families[node.name], known):
            known.add(node.name)
    return frozenset(known)


def _is_nonnegative(graph: Graph, node: Node, family: str, known: set[str]) -> bool:
    arguments = node.arguments
    if node.operation in _ALWAYS:
        return True
    if node.operation == "aten.hardtanh.default":
        return bool(arguments["min_val"] >= 0)
    inputs_are = all(name in known for name in graph.activations(node))
    if node.operation in PADS and not is_zero_pad(node):
        reflects = arguments.get("mode", "constant") != "constant"
        return inputs_are and (reflects or arguments["value"] >= 0)
    if node.operation in _SUMS | _PRODUCTS:
        return inputs_are and all(
            _is_nonnegative_operand(graph, arguments.get(name, 0))
            for name in ("self", "other", "alpha")
        )
    return inputs_are and family in _PRESERVING_FAMILIES and _are_nonnegative_entries(graph, node)


def _are_nonnegative_entries(graph: Graph, node: Node) -> bool:
    """Whether what the output holds beside entries of activations is not negative either.

    Parameters can have any sign; masks, indices and sizes are not among its entries.
    """
    for name, value in node.arguments.items():
        if name in _CHOICES:
            continue
        fills = node.operation in _FILLING
        # A constant without dimensions is a size, unless it fills.
        if any(
            (fills or graph.shape_of(ref)) and not graph.is_activation(ref) for ref in refs(value)
        ):
            return False
        if fills and isinstance(value, int | float) and value < 0:
            return False
    return True


def _is_nonnegative_operand(graph: Graph, value: Any) -> bool:
    """A number that is not negative, or an activation (which the caller checks)."""
    if isinstance(value, Ref):
        return graph.is_activation(value.name)
    return isinstance(value, int | float) and value >= 0
