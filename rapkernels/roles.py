"""Which layers are input layers and which is the last linear layer: read off the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rapkernels.graph import Graph, Node

_LAYERS = {"conv", "linear"}
_BEFORE_INPUT_LAYER = {"structure", "affine", "batch_norm"}


@dataclass(frozen=True)
class Roles:
    """Roles of the nodes of a graph; a layer that is the first and the last has both.

    Attributes:
        inputs: the first convolutions and linear layers from the inputs (z-box rule).
        outputs: the linear layers that the output, and it alone, is read from (first step).
        prefix: the nodes between the inputs and the input layers.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    prefix: frozenset[str]


def find_roles(graph: Graph, families: Mapping[str, str]) -> Roles:
    """Find the roles.

    Args:
        graph: the graph.
        families: activation node -> family of its rule.
    """
    outputs = _output_layers(graph, families)
    inputs: set[str] = set()
    prefix: set[str] = set()
    reached = set(graph.explained)
    for node in graph.nodes.values():
        read = graph.activations(node)
        if node.kind != "activation" or not reached.issuperset(read):
            continue
        if families[node.name] in _LAYERS:
            inputs.add(node.name)
        elif families[node.name] in _BEFORE_INPUT_LAYER:
            prefix.add(node.name)
            reached.add(node.name)
    return Roles(frozenset(inputs), frozenset(outputs), frozenset(prefix))


def _output_layers(graph: Graph, families: Mapping[str, str]) -> frozenset[str]:
    found: set[str] = set()
    pending = [graph.output]
    while pending:
        name = pending.pop()
        node = graph.nodes.get(name)
        if node is None:
            continue
        if families[name] == "structure":
            pending.extend(graph.activations(node))
        elif (
            families[name] == "linear"
            and len(node.shape) == 2
            and _starts(graph, node)
            and _leads_to_output_alone(graph, families, name)
        ):
            found.add(name)
    return frozenset(found)


def _leads_to_output_alone(graph: Graph, families: Mapping[str, str], name: str) -> bool:
    """Whether relevance comes to a value from the output alone, moved and not mixed."""
    return all(
        families.get(user) == "structure" and _leads_to_output_alone(graph, families, user)
        for user in graph.users.get(name, ())
    )


def _starts(graph: Graph, node: Node) -> bool:
    """Whether a linear layer's samples are those of the batch."""
    return bool(node.shape[0] == graph.batch)
