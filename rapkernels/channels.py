"""Which dimensions of each value hold the channels: the feature vector of a position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rapkernels.graph import Graph, Node
from rapkernels.moves import MOVES


@dataclass(frozen=True)
class Channels:
    """Where the channels of a value are.

    Attributes:
        dims: the dimensions that together hold the channels: 1 in images, 1 and 3 in heads
            ``(N, H, L, D)``.
        splits: what to unflatten first, the last dimension first: ``(dimension, sizes)``, for
            dimensions that hold more than channels, such as samples and heads in one. -1 stands for
            the part that grows with the batch.
    """

    dims: tuple[int, ...] = (1,)
    splits: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def include_last(self, rank: int) -> bool:
        """Whether the last dimension of a value of this rank holds channels."""
        split = sum(len(sizes) - 1 for _, sizes in self.splits)
        return self.dims[-1] == rank + split - 1

    def vectors(self, value: Tensor) -> Tensor:
        """A value, or its relevance, as ``(rows, C, *positions)``."""
        for dim, sizes in self.splits:
            before, after = value.shape[:dim], value.shape[dim + 1 :]
            value = value.reshape(*before, *_filled(value.shape[dim], sizes), *after)
        value = value.movedim(self.dims, tuple(range(1, len(self.dims) + 1)))
        return value.flatten(1, len(self.dims))

    def restored(self, vectors: Tensor, shape: Sequence[int]) -> Tensor:
        """What :meth:`vectors` was made of, for a value of this shape."""
        split = list(shape)
        for dim, sizes in self.splits:
            split[dim : dim + 1] = _filled(split[dim], sizes)
        channels = [split[dim] for dim in self.dims]
        value = vectors.reshape(vectors.shape[0], *channels, *vectors.shape[2:])
        return value.movedim(tuple(range(1, len(self.dims) + 1)), self.dims).reshape(tuple(shape))


def _filled(size: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    rest = size // -math.prod(sizes)
    return tuple(rest if part < 0 else part for part in sizes)


class _Factor(NamedTuple):
    """A part of a dimension; the sizes of all parts of a dimension multiply to its own."""

    size: int
    is_channel: bool


# The factors of each dimension. A value and what it is viewed as have the same ones in the same
# order, which is how heads and windows are followed.
_Layout = tuple[tuple[_Factor, ...], ...]
# Stands for the batch size: no other size is a multiple of it.
_BATCH = 1_000_003


def find_channels(
    graph: Graph, families: Mapping[str, str], carried: Mapping[str, Sequence[str]]
) -> dict[str, Channels]:
    """Name of a value -> its channels, for the values where they are known.

    They are dimension 1 of the inputs, of convolutions and of everything with two dimensions, the
    last dimension of linear layers, and are followed through everything else. A linear layer over
    a dimension that holds positions mixes those: the channels stay where a layer before it put
    them. Where only the inputs' dimension 1 would say so, they are those of the linear layer.

    Args:
        graph: the graph.
        families: activation node -> family of its rule.
        carried: activation node -> the activations that it hands relevance to.
    """
    layouts: dict[str, _Layout] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    # Values whose channels no layer has told: inputs may be tokens, whose channels come last.
    assumed = set(graph.explained)
    for name in graph.explained:
        shapes[name] = graph.sized(graph.shape_of(name), _BATCH)
        if len(shapes[name]) > 1:
            layouts[name] = _along(shapes[name], 1)
    for node in graph.nodes.values():
        if node.kind != "activation":
            continue
        shape = shapes[node.name] = graph.sized(node.shape, _BATCH)
        family = families[node.name]
        if len(shape) == 2 or family == "conv":
            layouts[node.name] = _along(shape, 1)
        elif family == "linear":
            source = carried[node.name][0]
            known = None if source in assumed else layouts.get(source)
            layouts[node.name] = _through_linear(known, shape)
        else:
            # What is broadcast has no say, unless everything is.
            sources = carried[node.name]
            sources = [name for name in sources if shapes[name] == shape] or sources
            if all(name in layouts for name in sources):
                found = {_followed(node, name, layouts[name], shape) for name in sources}
                if len(found) == 1 and (layout := found.pop()) is not None:
                    layouts[node.name] = layout
                    if assumed.issuperset(sources):
                        assumed.add(node.name)
    described = {name: _described(layout) for name, layout in layouts.items()}
    return {name: channels for name, channels in described.items() if channels is not None}


def _along(shape: tuple[int, ...], channel_dim: int) -> _Layout:
    return tuple((_Factor(size, dim == channel_dim),) for dim, size in enumerate(shape))


def _through_linear(layout: _Layout | None, shape: tuple[int, ...]) -> _Layout:
    """Channels last, unless a layer has put them elsewhere and the last dimension has positions."""
    if layout is not None and len(layout) == len(shape):
        channels, positions = (
            [factor.is_channel for factors in dims for factor in factors if factor.size > 1]
            for dims in (layout[:-1], layout[-1:])
        )
        if any(channels) and positions and not any(positions):
            return (*layout[:-1], (_Factor(shape[-1], is_channel=False),))
    return _along(shape, len(shape) - 1)


def _described(layout: _Layout) -> Channels | None:
    dims: list[int] = []
    splits: list[tuple[int, tuple[int, ...]]] = []
    position = 0
    for dim, factors in enumerate(layout):
        kinds = {factor.is_channel for factor in factors}
        if len(kinds) > 1:
            sizes = [-1 if factor.size % _BATCH == 0 else factor.size for factor in factors]
            splits.append((dim, tuple(sizes)))
            dims += [position + i for i, factor in enumerate(factors) if factor.is_channel]
            position += len(factors)
            continue
        if True in kinds:
            dims.append(position)
        position += 1
    if not dims or dims[0] == 0 or any(sizes.count(-1) > 1 for _, sizes in splits):
        return None
    return Channels(tuple(dims), tuple(reversed(splits)))


def _followed(node: Node, source: str, layout: _Layout, shape: tuple[int, ...]) -> _Layout | None:
    """The layout of a node's value, from that of one that it reads."""
    name = node.operation.removeprefix("aten.").partition(".")[0]
    moved: _Layout | None = layout
    if name in MOVES:
        moved = tuple(layout[dim] for dim in MOVES[name](node, len(layout)))
    elif name in _VIEWS:
        return _viewed(layout, shape)
    elif name in ("select", "unbind") or (name in _REDUCES and len(shape) < len(layout)):
        given = node.arguments["dim"]
        reduced = range(len(layout)) if given is None else given
        gone = {
            int(dim) % len(layout) for dim in ([reduced] if isinstance(reduced, int) else reduced)
        }
        moved = tuple(factors for dim, factors in enumerate(layout) if dim not in gone)
    elif name == "stack":
        dim = int(node.arguments["dim"]) % len(shape)
        moved = (*layout[:dim], (_Factor(shape[dim], False),), *layout[dim:])
    elif name == "einsum":
        moved = _through_einsum(node, source, layout)
    elif name == "index" and sum(index is not None for index in node.arguments["indices"]) > 1:
        # Indices of several dimensions make new ones of them together.
        moved = None
    elif name in ("expand", "broadcast_to"):
        moved = (*((_Factor(size, False),) for size in shape[: len(shape) - len(layout)]), *layout)
    return None if moved is None or len(moved) != len(shape) else _resized(moved, shape)


_REDUCES = {"mean", "sum", "amax", "amin", "max", "min"}
_VIEWS = {
    *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
}


def _viewed(layout: _Layout, shape: tuple[int, ...]) -> _Layout | None:
    """The same factors, split where it must be, under new dimensions."""
    rest = [factor for factors in layout for factor in factors]
    viewed: list[tuple[_Factor, ...]] = []
    for size in shape:
        taken: list[_Factor] = []
        while rest and (left := size // math.prod(factor.size for factor in taken)) > 1:
            factor = rest.pop(0)
            if factor.size > left:
                if factor.size % left:
                    return None
                rest.insert(0, _Factor(factor.size // left, factor.is_channel))
                factor = _Factor(left, factor.is_channel)
            elif left % factor.size:
                return None
            taken.append(factor)
        if size == 1 and rest and rest[0].size == 1:
            taken.append(rest.pop(0))
        viewed.append(_joined(taken))
    return tuple(viewed)


def _joined(factors: Sequence[_Factor]) -> tuple[_Factor, ...]:
    """Neighbours of one kind as one factor, so that equal layouts compare equal."""
    joined: list[_Factor] = []
    for factor in [factor for factor in factors if factor.size > 1] or factors[:1]:
        if joined and joined[-1].is_channel == factor.is_channel:
            factor = _Factor(joined.pop().size * factor.size, factor.is_channel)
        joined.append(factor)
    return tuple(joined) or (_Factor(1, False),)


def _resized(layout: _Layout, shape: tuple[int, ...]) -> _Layout | None:
    """The same dimensions with other sizes: parts, pads, repetitions, new positions."""
    found: list[tuple[_Factor, ...]] = []
    for factors, size in zip(layout, shape, strict=True):
        if math.prod(factor.size for factor in factors) == size:
            found.append(factors)
            continue
        kinds = {factor.is_channel for factor in factors}
        if len(kinds) != 1:
            return None
        found.append((_Factor(size, kinds.pop()),))
    return tuple(found)


def _through_einsum(node: Node, source: str, layout: _Layout) -> _Layout | None:
    """Dimensions by their letters; a new one takes the place of the one that is summed over."""
    terms, arrow, output = node.arguments["equation"].replace(" ", "").partition("->")
    operands = [getattr(operand, "name", "") for operand in node.arguments["tensors"]]
    if not arrow or "." in terms:
        return None
    letters = dict(zip(terms.split(",")[operands.index(source)], layout, strict=True))
    summed = [factors for letter, factors in letters.items() if letter not in output]
    if len(summed) != 1 and not all(letter in letters for letter in output):
        return None
    return tuple(letters[letter] if letter in letters else summed[0] for letter in output)
