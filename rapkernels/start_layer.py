"""Where relevance starts in methods that explain from a layer: found in the graph, or named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rapkernels import checks
from rapkernels.errors import ArgumentError
from rapkernels.graph import Graph, Node
from rapkernels.rules.base import Rule
from rapkernels.rules.choices import Classes
from rapkernels.rules.classes import family_of, reached, rule_classes
from rapkernels.rules.gates import PRODUCTS, Gate


def find_start(
    graph: Graph, model: nn.Module, layer: str | None, classes: Classes | None = None
) -> str:
    """The node where relevance starts.

    Args:
        graph: the graph of the model.
        model: the model.
        layer: path of a module: the last value that it computes. None for the last activation
            function after a convolution whose value still has positions and is no gate, or gated
            linear unit: in VGG-16 that is "features.29", in a ResNet the end of its last block.
        classes: the classes of rules of the nodes, None for those of the table.

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
    classes = rule_classes(graph) if classes is None else classes
    families = {name: family_of(cls) for name, cls in classes.items()}
    signals = reached(graph, graph.output, classes)
    candidates = [
        node
        for node in reversed(active)
        if node.name in signals and _leads_with_samples(graph, node.name)
    ]
    for node in candidates:
        if (
            (families[node.name] == "activation" or _is_gated_unit(graph, node, classes[node.name]))
            and len(node.shape) > 2
            and any(families.get(name) == "conv" for name in graph.ancestors(node.name))
        ):
            return node.name
    raise ArgumentError(
        f"layer must be given, as a module path{_example(candidates, families)}, where the model "
        "has no activation function after a convolution, got None"
    )


def _leads_with_samples(graph: Graph, name: str) -> bool:
    return bool(graph.shape_of(name)[:1] == (graph.batch,))


def _is_gated_unit(graph: Graph, node: Node, cls: type[Rule] | None) -> bool:
    """Whether a node multiplies a signal by an activation function of its own shape."""
    return (
        cls is Gate
        and node.operation in PRODUCTS
        and all(graph.shape_of(name) == node.shape for name in graph.activations(node))
    )


def _example(candidates: Sequence[Node], families: dict[str, str]) -> str:
    """A layer to choose: the last activation function, else the last value that has positions."""
    activations = [node for node in candidates if families[node.name] == "activation"]
    placed = [node for node in candidates if len(node.shape) > 2]
    paths = [node.module for node in (*activations, *placed) if node.module]
    return f' such as "{paths[0]}"' if paths else ""
