"""Operations that change the order of dimensions."""

from __future__ import annotations

from collections.abc import Callable

from rapkernels.graph import Node


def _permuted(node: Node, rank: int) -> list[int]:
    return [int(dim) % rank for dim in node.arguments["dims"]]


def _swapped(node: Node, rank: int) -> list[int]:
    order = list(range(rank))
    names = ("axis0", "axis1") if "axis0" in node.arguments else ("dim0", "dim1")
    first, second = (int(node.arguments[name]) % rank for name in names)
    order[first], order[second] = second, first
    return order


def _dim_moved(node: Node, rank: int) -> list[int]:
    source, destination = (int(node.arguments[name]) % rank for name in ("source", "destination"))
    order = [dim for dim in range(rank) if dim != source]
    order.insert(destination, source)
    return order


def _turned(node: Node, rank: int) -> list[int]:
    order = list(range(rank))
    if int(node.arguments["k"]) % 2:
        first, second = (int(dim) % rank for dim in node.arguments["dims"])
        order[first], order[second] = second, first
    return order


# From an operation and the rank of what it reads to the old dimension of each new one.
MOVES: dict[str, Callable[[Node, int], list[int]]] = {
    "permute": _permuted,
    "transpose": _swapped,
    "swapaxes": _swapped,
    "movedim": _dim_moved,
    "rot90": _turned,
    "numpy_T": lambda _, rank: list(reversed(range(rank))),
    "mT": lambda _, rank: [*range(rank - 2), rank - 1, rank - 2],
}
