"""Take in-place writes out of an exported graph, so that every value is written once."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

# These hand their input on in eval mode, which their schema does not say.
_RETURNS_INPUT = {
    "aten.dropout.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
    "aten.feature_alpha_dropout.default",
    "aten.type_as.default",
}


def functionalise(program: ExportedProgram) -> tuple[ExportedProgram, fx.Graph, dict[str, str]]:
    """Replace in-place operations by their functional overloads and redirect later uses.

    Where a written value shares its memory with another value that is read later,
    ``run_decompositions`` does it instead, which is slower and splits operations up.

    Returns:
        The program, which need not be the one given; its graph without in-place operations; and the
        names that the program's signature uses -> names in the graph.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    replaced = _rewrite(graph)
    if replaced is not None:
        names = {node.name: replaced.get(copy, copy).name for node, copy in copies.items()}
        return program, graph, names
    _expose_aliases(program.graph)
    program.graph_module.recompile()
    program = program.run_decompositions({})
    return program, program.graph, {node.name: node.name for node in program.graph.nodes}


def _rewrite(graph: fx.Graph) -> dict[fx.Node, fx.Node] | None:
    """Each write and what took its place; None, with a graph half rewritten, where one stays."""
    replaced: dict[fx.Node, fx.Node] = {}
    order = {node: position for position, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, list[fx.Node]] = {}  # node -> all nodes that share its memory
    for node in list(graph.nodes):
        written = list(_written(node))
        if not written:
            sharers = next((memory[base] for base in _aliased(node)), [])
            sharers.append(node)
            memory[node] = sharers
            continue
        functional = _functional_overload(node.target)
        if len(written) != 1 or functional is None:
            return None
        value = written[0]
        if _would_promote(node, value) or any(
            order[user] > order[node]
            for sharer in memory[value]
            if sharer is not value
            for user in sharer.users
        ):
            return None
        with graph.inserting_before(node):
            pure = graph.call_function(functional, node.args, node.kwargs)
        pure.meta = dict(node.meta)
        replaced[node] = pure
        position = order[pure] = order[node]
        memory[pure] = [pure]
        node.replace_all_uses_with(pure)
        for user in [user for user in value.users if order[user] > position]:
            user.replace_input_with(value, pure)
        graph.erase_node(node)
    return replaced


def _expose_aliases(graph: fx.Graph) -> None:
    """Replace operations that hand their input on without saying so by ``aten.alias``.

    Dropout in eval mode returns its input itself; ``run_decompositions`` takes it for a copy.
    """
    for node in graph.nodes:
        if str(node.target) in _RETURNS_INPUT:
            node.target = torch.ops.aten.alias.default
            node.args, node.kwargs = node.args[:1], {}


def _arguments(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """(schema argument, value) of each argument given."""
    schema = getattr(node.target, "_schema", None)
    if node.op == "call_function" and schema is not None:
        for position, argument in enumerate(schema.arguments):
            if position < len(node.args):
                yield argument, node.args[position]
            elif argument.name in node.kwargs:
                yield argument, node.kwargs[argument.name]


def _written(node: fx.Node) -> Iterator[fx.Node]:
    for argument, value in _arguments(node):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _nodes(value)


def _aliased(node: fx.Node) -> Iterator[fx.Node]:
    if node.target is operator.getitem or str(node.target) in _RETURNS_INPUT:
        yield from _nodes(node.args[0])
    for argument, value in _arguments(node):
        if argument.alias_info is not None:
            yield from _nodes(value)


def _would_promote(node: fx.Node, value: fx.Node) -> bool:
    """Whether the functional overload would return another dtype than the written value has."""
    dtype = getattr(value.meta.get("val"), "dtype", None)
    others = (getattr(other.meta.get("val"), "dtype", dtype) for other in node.all_input_nodes)
    return any(other != dtype and other.is_floating_point for other in others if other is not None)


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _functional_overload(target: Any) -> Any | None:
    """aten.relu_.default -> aten.relu.default."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    namespace, _, name = target._schema.name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, target._overloadname, None)
