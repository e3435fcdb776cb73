"""Which class of rules every node gets, and which nodes relevance comes to."""

from __future__ import annotations

from collections.abc import Mapping

from rapkernels.graph import Graph
from rapkernels.rules.attnlrp import with_attnlrp
from rapkernels.rules.base import Rule
from rapkernels.rules.choices import Choices, Classes, with_choices
from rapkernels.rules.registry import rule_class


def rule_classes(graph: Graph, attention: str = "constant", chosen: Choices = ()) -> Classes:
    """Activation node -> its class of rules, None where it has none.

    Args:
        graph: the graph.
        attention: see :class:`~rapkernels.rules.base.Method`.
        chosen: what the caller chose, likewise.

    Raises:
        ArgumentError: a key of ``chosen`` names nothing.
    """
    active = [node for node in graph.nodes.values() if node.kind == "activation"]
    classes = {node.name: rule_class(graph, node) for node in active}
    if attention == "attnlrp":
        classes = {
            name: with_attnlrp(graph, graph.nodes[name], cls) for name, cls in classes.items()
        }
    return with_choices(graph, chosen, classes)


def family_of(cls: type[Rule] | None) -> str:
    """The family of a class of rules, see :class:`rapkernels.rules.Rule`."""
    return "custom" if cls is None else cls.family


def carried(graph: Graph, name: str, cls: type[Rule] | None) -> tuple[str, ...]:
    """The activations that a node of a class of rules hands relevance to."""
    node = graph.nodes[name]
    return graph.activations(node) if cls is None else cls.carried(graph, node)


def reached(graph: Graph, end: str, classes: Mapping[str, type[Rule] | None]) -> set[str]:
    """The nodes that relevance from ``end`` comes to."""
    found: set[str] = set()
    pending = [end]
    while pending:
        name = pending.pop()
        if name in found or name not in classes:
            continue
        found.add(name)
        pending.extend(carried(graph, name, classes[name]))
    return found
