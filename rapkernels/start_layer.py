"""Where relevance starts in methods that explain from a layer: found in the graph, or named."""

from __future__ import annotations

from torch import nn

from rapkernels import checks
from rapkernels.errors import ArgumentError
from rapkernels.graph import Graph, Node
from rapkernels.rules.registry import rule_class


def find_start(graph: Graph, model: nn.Module, layer: str | None) -> str:
    """The node where relevance starts.

    Args:
        graph: the graph of the model.
        model: the model.
        layer: path of a module: the last value that it computes. None for the last activation
            function after a convolution whose value still has positions: in VGG-16 that is
            "features.29", in a ResNet the end of its last block.

    Raises:
        ArgumentError: there is no such module, none to be found, or the first dimension of its
            output is not the batch.
    """
    active = [node for node in graph.nodes.values() if node.kind == "activation"]
    if layer is not None:
        last = {path: node.name for node in active for path in node.modules}
        if layer not in last:
            raise checks.unknown_layer("layer must name a module", layer, model, last)
        if not _leads_with_samples(graph, last[layer]):
            raise ArgumentError(
                "layer must name a module whose output has one row per sample, got "
                f"{layer!r}, whose output has the shape {list(graph.shape_of(last[layer]))} for a "
                f"batch of {graph.batch}"
            )
        return last[layer]
    for node in reversed(active):
        if (
            _family(graph, node) == "activation"
            and len(node.shape) > 2
            and _leads_with_samples(graph, node.name)
            and any(_is_convolution(graph, name) for name in graph.ancestors(node.name))
        ):
            return node.name
    raise ArgumentError(
        "layer must be given, as a module path, where the model has no activation function after "
        "a convolution, got None"
    )


def _leads_with_samples(graph: Graph, name: str) -> bool:
    shape = graph.shape_of(name)
    return graph.batch is None or bool(shape[:1] == (graph.batch,))


def _family(graph: Graph, node: Node) -> str:
    cls = rule_class(graph, node)
    return "custom" if cls is None else cls.family


def _is_convolution(graph: Graph, name: str) -> bool:
    node = graph.nodes[name]
    return node.kind == "activation" and _family(graph, node) == "conv"
