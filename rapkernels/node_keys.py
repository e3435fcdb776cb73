"""What the keys of a caller's dict name: nodes of a graph, modules, or patterns of their paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from rapkernels import checks
from rapkernels.errors import ArgumentError
from rapkernels.graph import Node

T = TypeVar("T")
# The paths of modules that a node answers to, the most specific first.
Paths = Callable[[Node], Sequence[str]]


def own_module(node: Node) -> tuple[str, ...]:
    """The module that the node belongs to, without those around it."""
    return (node.module,)


def modules_around(node: Node) -> tuple[str, ...]:
    """The module that the node belongs to and those that it is in."""
    return tuple(reversed(node.modules))


def choose(node: Node, choices: Mapping[str, T], paths: Paths) -> T | None:
    """What a node gets; None if no key names it.

    The most specific key wins: the node's name, then the path of a module, then a pattern of paths
    (as in :mod:`fnmatch`: ``*`` stands for anything, dots included), in the order of the dict.
    """
    named = paths(node)
    for name in (node.name, *named):
        if name in choices:
            return choices[name]
    matching = (key for key in choices if any(fnmatchcase(path, key) for path in named))
    key = next(matching, None)
    return None if key is None else choices[key]


def check_all_name(keys: Iterable[str], nodes: Sequence[Node], paths: Paths, needed: str) -> None:
    """Raise ArgumentError for the first key that names none of the nodes.

    Args:
        keys: the keys.
        nodes: what they can name.
        paths: which paths of a node count.
        needed: what the argument must do, as in "rules must name nodes".
    """
    for key in keys:
        if not any(choose(node, {key: True}, paths) for node in nodes):
            names = {name for node in nodes for name in (node.name, *paths(node))}
            raise ArgumentError(f"{needed}, got {key!r} ({checks.hint(key, names)})")
