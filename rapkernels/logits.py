"""Models that end in a softmax: what is explained are the logits before it."""

from __future__ import annotations

from dataclasses import replace

from rapkernels.graph import Graph

SOFTMAX = ("aten.softmax.int", "aten._softmax.default", "aten.special_softmax.default")
_ENDS = {
    *SOFTMAX,
    *("aten.log_softmax.int", "aten._log_softmax.default", "aten.special_log_softmax.default"),
}
_COPIES = {"aten.dropout.default", "aten.clone.default", "aten.contiguous.default"}


def without_softmax(graph: Graph) -> Graph:
    """The graph up to the softmax or log_softmax that is its output; else the graph itself.

    The classes keep their order. A probability says how a class compares with all others, and its
    logarithm is never positive, so that relevance would be turned round.
    """
    output = graph.output
    while output in graph.nodes and graph.nodes[output].operation in _ENDS | _COPIES:
        output = graph.activations(graph.nodes[output])[0]
    if not any(
        graph.nodes[name].operation in _ENDS
        for name in graph.ancestors(graph.output) - graph.ancestors(output)
    ):
        return graph
    needed = graph.ancestors(output)
    nodes = {name: node for name, node in graph.nodes.items() if name in needed}
    return replace(graph, nodes=nodes, output=output)
