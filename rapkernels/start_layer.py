"""Where relevance starts in methods that explain from a layer: found in the graph, or named."""

from __future__ import annotations

from torch import nn

from rapkernels import checks
from rapkernels.errors import ArgumentError
from rapkernels.graph import Graph
from rapkernels.rules.choices import Choices
from rapkernels.rules.classes import family_of, rule_classes


def find_start(graph: Graph, model: nn.Module, layer: str | None, choices: Choices = ()) -> str:
    """The node where relevance starts.

    Args:
        graph: the graph of the model.
        model: the model.
        layer: path of a module: the last value that it computes. None for the last activation
            function after a convolution whose value still has positions: in VGG-16 that is
            "features.29", in a ResNet the end of its last block.
        choices: rules that the caller chose: an operation is what its rule takes it for.

    Raises:
        ArgumentError: there is no such module, none to be found, or the first dimension of its
            output is not the batch; or a choice names nothing.
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
    families = {name: family_of(cls) for name, cls in rule_classes(graph, chosen=choices).items()}
    for node in reversed(active):
        if (
            families[node.name] == "activation"
            and len(node.shape) > 2
            and _leads_with_samples(graph, node.name)
            and any(families.get(name) == "conv" for name in graph.ancestors(node.name))
        ):
            return node.name
    raise ArgumentError(
        "layer must be given, as a module path, where the model has no activation function after "
        "a convolution, got None"
    )


def _leads_with_samples(graph: Graph, name: str) -> bool:
    shape = graph.shape_of(name)
    return graph.batch is None or bool(shape[:1] == (graph.batch,))
