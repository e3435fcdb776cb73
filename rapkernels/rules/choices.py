"""Rules that a caller chooses for nodes and modules of one model."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.graph import Graph, Node
from rapkernels.rules.base import Rule
from rapkernels.rules.registry import named_rule

RuleChoices: TypeAlias = Mapping[str, str | type[Rule]]
Choices = tuple[tuple[str, type[Rule]], ...]
Classes = dict[str, type[Rule] | None]


def read_choices(rules: Any) -> Choices:
    """What a caller gives as ``rules``, checked.

    Raises:
        ArgumentTypeError: no dict, a key that is no string, or a rule that is none.
        ArgumentError: an unknown name of a rule.
    """
    if rules is None:
        return ()
    if not isinstance(rules, Mapping):
        raise ArgumentTypeError(
            f'rules must be a dict such as {{"features.3": "identity"}}, got {type(rules).__name__}'
        )
    for key in rules:
        if not isinstance(key, str):
            raise ArgumentTypeError(
                "rules must have names of nodes or paths of modules as keys, got "
                f"{type(key).__name__}"
            )
    return tuple((key, named_rule(f"rules[{key!r}]", rule)) for key, rule in rules.items())


def with_choices(graph: Graph, choices: Choices, classes: Classes) -> Classes:
    """The classes of rules of a graph's nodes with what a caller chose in their place.

    Args:
        graph: the graph.
        choices: pairs of a key and a class of rules; the key is the name of a node, the path of the
            module that a node belongs to, or a pattern of such paths. The name of a node comes
            first, then a path, then patterns in their order; those of modules leave structure be.
        classes: node -> class.

    Raises:
        ArgumentError: a key names nothing.
    """
    if not choices:
        return classes
    for key, _ in choices:
        if not any(_names(key, graph.nodes[name]) for name in classes):
            raise ArgumentError(
                "rules must name nodes or modules that compute something from x, as plan shows "
                f"them, got {key!r}"
            )
    return {name: _choose(graph.nodes[name], cls, choices) for name, cls in classes.items()}


def _names(key: str, node: Node) -> bool:
    return key == node.name or fnmatchcase(node.module, key)


def _choose(node: Node, cls: type[Rule] | None, choices: Choices) -> type[Rule] | None:
    known = dict(choices)
    if node.name in known:
        return known[node.name]
    if cls is not None and cls.family == "structure":
        return cls
    if node.module in known:
        return known[node.module]
    return next((chosen for key, chosen in choices if fnmatchcase(node.module, key)), cls)
