"""Rules that a caller chooses for nodes and modules of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from rapkernels.errors import ArgumentTypeError
from rapkernels.graph import Graph, Node
from rapkernels.node_keys import check_all_name, choose, own_module
from rapkernels.rules.base import Rule
from rapkernels.rules.registry import NAMED, named_rule

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


def shown(choices: Choices) -> str:
    """The choices as the caller may have written them."""
    names = {cls: repr(name) for name, cls in NAMED.items()}
    pairs = (f"{key!r}: {names.get(cls, cls.__name__)}" for key, cls in choices)
    return "{" + ", ".join(pairs) + "}"


def with_choices(graph: Graph, choices: Choices, classes: Classes) -> Classes:
    """The classes of rules of a graph's activations with what a caller chose in their place.

    Args:
        graph: the graph.
        choices: pairs of a key and a class. The key is the name of a node, the path of the module
            that a node belongs to, or a pattern of such paths; the most specific wins. Those of
            modules leave structure be.
        classes: node -> class.

    Raises:
        ArgumentError: a key names nothing.
    """
    if not choices:
        return classes
    given = dict(choices)
    check_all_name(
        given,
        [graph.nodes[name] for name in classes],
        own_module,
        "rules must name nodes or modules that compute something from x, as plan shows them",
    )
    return {name: _choose(graph.nodes[name], cls, given) for name, cls in classes.items()}


def _choose(
    node: Node, cls: type[Rule] | None, given: Mapping[str, type[Rule]]
) -> type[Rule] | None:
    if cls is not None and cls.family == "structure":
        return given.get(node.name, cls)
    return choose(node, given, own_module) or cls
