"""Where the samples are in the values of a graph that holds for one batch size alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import sympy

from rapkernels.graph import Dimension, Graph, Node, refs
from rapkernels.moves import MOVES

# Stands for the batch size in shapes.
_SAMPLES = sympy.Symbol("samples", integer=True, positive=True)

Shape = tuple[Dimension, ...]

# A value leads with the samples, belongs to a single sample (or to none), or it is not known.
_Place = Literal["first", "one", "unknown"]


def place_samples(graph: Graph, samples: int, export: Callable[[int], Graph]) -> Graph:
    """A graph that was exported for one batch size, with sizes that depend on that as expressions.

    Values are compared with those of an export for another batch size. Where there is none that
    has the same nodes, the samples are followed from the inputs; ``graph.unplaced`` has the values
    where they are lost.

    Args:
        graph: the graph.
        samples: its batch size.
        export: gives the graph for another batch size; raises where the model does not take that.
    """
    # Models that take frames for samples need a multiple.
    for size in dict.fromkeys((samples + 1, 2 * samples)):
        try:
            other = export(size)
        except Exception:  # Whatever the model says to another batch size.
            continue
        found = _compared(graph, samples, other, size)
        if found is not None:
            return found
        break
    return _followed(graph, samples)


def _compared(graph: Graph, samples: int, other: Graph, others: int) -> Graph | None:
    """What differs between two exports is the batch; None where their nodes are not the same."""
    if _structure(graph) != _structure(other):
        return None

    def sized(name: str) -> Shape | None:
        pairs = zip(_sizes(graph, name), _sizes(other, name), strict=True)
        lines = [((more - size) / (others - samples), size) for size, more in pairs]
        if not all(slope.is_integer() for slope, _ in lines):
            return None
        return tuple(
            int(slope) * (_SAMPLES - samples) + size if slope else size for slope, size in lines
        )

    shapes = {name: sized(name) for name in (*graph.nodes, *graph.shapes)}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    return _with_shapes(graph, known) if len(known) == len(shapes) else None


def _structure(graph: Graph) -> list[tuple[object, ...]]:
    nodes = [
        (node.name, node.operation, len(node.shape), *refs((node.args, node.kwargs)))
        for node in graph.nodes.values()
    ]
    return [*nodes, *((name, len(shape)) for name, shape in graph.shapes.items())]


def _sizes(graph: Graph, name: str) -> list[int]:
    return [int(size) for size in graph.sized(graph.shape_of(name), 0)]


def _followed(graph: Graph, samples: int) -> Graph:
    """The samples are the first dimension until an operation moves that."""
    places: dict[str, _Place] = dict.fromkeys(graph.inputs, "first")
    shapes: dict[str, Shape] = {}
    unplaced: set[str] = set()
    for name in (*graph.inputs, *graph.nodes):
        sizes = _sizes(graph, name)
        if name in graph.nodes:
            node = graph.nodes[name]
            read = {places.get(source, "one") for source in refs((node.args, node.kwargs))}
            places[name] = _place(graph, node, read)
        if places[name] == "first" and (not sizes or sizes[0] % samples):
            places[name] = "unknown"
        multiples = [dim for dim, size in enumerate(sizes) if size % samples == 0]
        batch = 0
        if places[name] == "unknown":
            if len(multiples) == 1 and sizes[multiples[0]] == samples:
                batch = multiples[0]
                places[name] = "unknown" if batch else "first"
            else:
                unplaced.add(name)
                continue
        if places[name] != "one":
            shapes[name] = *sizes[:batch], sizes[batch] // samples * _SAMPLES, *sizes[batch + 1 :]
    return replace(_with_shapes(graph, shapes), unplaced=frozenset(unplaced))


def _place(graph: Graph, node: Node, read: set[_Place]) -> _Place:
    if "unknown" in read:
        return "unknown"
    name = node.operation.removeprefix("aten.").partition(".")[0]
    at_first = _dim(graph, node) == 0
    if "first" not in read:
        return "first" if name in _JOINS and at_first else "one"
    if name in _PARTS and at_first:
        return "one"
    rank = len(graph.shape_of(next(refs(node.args))))
    moves = name in MOVES and MOVES[name](node, rank)[:1] != [0]
    return "unknown" if moves or name == "einsum" or (name in _ADDS and at_first) else "first"


# Of the first dimension they take a part, put one before it, or join values in it.
_PARTS = {"select", "slice", "narrow", "unbind", "split", "split_with_sizes", "chunk"}
_ADDS = {"unsqueeze", "stack"}
_JOINS = {"stack", "cat"}


def _dim(graph: Graph, node: Node) -> int | None:
    dim = node.arguments.get("dim")
    if not isinstance(dim, int) or dim >= 0:
        return dim if isinstance(dim, int) else None
    rank = len(graph.shape_of(next(refs(node.args))))
    return dim + rank + node.operation.startswith(("aten.unsqueeze.", "aten.stack."))


def _with_shapes(graph: Graph, shapes: dict[str, Shape]) -> Graph:
    nodes = {
        name: replace(node, shape=shapes.get(name, node.shape))
        for name, node in graph.nodes.items()
    }
    given = {name: shapes.get(name, shape) for name, shape in graph.shapes.items()}
    return replace(graph, nodes=nodes, shapes=given, batch=_SAMPLES)
