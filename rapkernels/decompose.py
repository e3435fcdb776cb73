"""Operations of an exported graph that are others in one: replaced by those, which have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

_aten = torch.ops.aten


def decompose(graph: fx.Graph) -> None:
    """Replace operations that are a sum, a product or a convolution of others, in place.

    The last operation of each takes the name of the one that it is in place of. Equal to it up to
    rounding:

    - ``addcmul``, ``addcdiv``: a product or quotient, then a sum. ``baddbmm``: likewise.
    - ``glu``: the two halves, of which one opens the other.
    - ``reshape_as``, ``view_as``: ``reshape``. ``native_channel_shuffle``, which torch has no
      derivative for: ``channel_shuffle``.
    - Transposed convolutions: zeros between the entries and around them, then a convolution with
      the kernel turned round.
    """
    for node in list(graph.nodes):
        build = _DECOMPOSITIONS.get(str(node.target)) if node.op == "call_function" else None
        if build is None:
            continue
        with graph.inserting_before(node):
            last = build(_Builder(graph, node), *node.args, **node.kwargs)
        node.replace_all_uses_with(last)
        graph.erase_node(node)
        last.name = node.name


class _Builder:
    """Adds operations in front of a node, as parts of the same modules."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self._graph = graph
        self._meta = node.meta

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        made = self._graph.call_function(target, args, kwargs)
        values, options = fx.node.map_arg((args, kwargs), lambda node: node.meta["val"])
        # Without torch's Python decompositions a pad would fix the batch size.
        with torch.no_grad(), enable_python_dispatcher():
            made.meta = {**self._meta, "val": target(*values, **options)}
        return made


def _shape(node: fx.Node) -> torch.Size:
    value: Tensor = node.meta["val"]
    return value.shape


def _addcmul(build: _Builder, x: Any, first: Any, second: Any, *, value: Any = 1) -> Any:
    return _add(build, x, build(_aten.mul.Tensor, first, second), value)


def _addcdiv(build: _Builder, x: Any, first: Any, second: Any, *, value: Any = 1) -> Any:
    return _add(build, x, build(_aten.div.Tensor, first, second), value)


def _baddbmm(build: _Builder, x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    term = x if beta == 1 else build(_aten.mul.Tensor, x, beta)
    return _add(build, term, build(_aten.bmm.default, a, b), alpha)


def _add(build: _Builder, x: Any, y: Any, factor: Any) -> Any:
    return build(_aten.add.Tensor, x, y, **({} if factor == 1 else {"alpha": factor}))


def _glu(build: _Builder, x: Any, dim: int = -1) -> Any:
    half = _shape(x)[dim] // 2
    signal = build(_aten.slice.Tensor, x, dim, 0, half)
    gate = build(_aten.sigmoid.default, build(_aten.slice.Tensor, x, dim, half, 2 * half))
    return build(_aten.mul.Tensor, signal, gate)


def _reshape_as(build: _Builder, x: Any, other: Any) -> Any:
    sizes = [
        size if isinstance(size, int) else build(_aten.sym_size.int, other, dim)
        for dim, size in enumerate(_shape(other))
    ]
    return build(_aten.reshape.default, x, sizes)


def _channel_shuffle(build: _Builder, x: Any, groups: Any) -> Any:
    return build(_aten.channel_shuffle.default, x, groups)


def _conv_transpose(
    build: _Builder,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    kernel = _shape(weight)[2:]
    dims = len(kernel)
    strides, paddings, extra, dilations = (
        _per_dimension(value, dims) for value in (stride, padding, output_padding, dilation)
    )
    for dim, step in enumerate(strides, start=2):
        if step > 1:
            x = _spread(build, x, dim, step)
    amounts: list[int] = []
    for dim in reversed(range(dims)):
        reach = dilations[dim] * (kernel[dim] - 1) - paddings[dim]
        amounts += [reach, reach + extra[dim] - (strides[dim] - 1)]
    if any(amounts):
        x = build(_aten.constant_pad_nd.default, x, amounts)
    convolve = (_aten.conv1d, _aten.conv2d, _aten.conv3d)[dims - 1].default
    turned = _turned(build, weight, groups)
    return build(convolve, x, turned, bias, [1] * dims, [0] * dims, dilations, groups)


def _spread(build: _Builder, x: Any, dim: int, step: int) -> Any:
    """``step - 1`` zeros behind each entry."""
    behind = len(_shape(x)) - dim
    x = build(_aten.unsqueeze.default, x, dim + 1)
    x = build(_aten.constant_pad_nd.default, x, [0] * (2 * (behind - 1)) + [0, step - 1])
    return build(_aten.flatten.using_ints, x, dim, dim + 1)


def _turned(build: _Builder, weight: Any, groups: int) -> Any:
    """``(I, O / groups, *kernel)`` as ``(O, I / groups, *kernel)``, the kernel turned round."""
    rows, columns, *kernel = _shape(weight)
    if rows % groups:
        raise ValueError(f"{groups} groups do not divide {rows} channels")
    grouped = build(_aten.reshape.default, weight, [groups, rows // groups, columns, *kernel])
    swapped = build(_aten.transpose.int, grouped, 1, 2)
    flat = build(_aten.reshape.default, swapped, [groups * columns, rows // groups, *kernel])
    return build(_aten.flip.default, flat, list(range(2, 2 + len(kernel))))


def _per_dimension(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


_DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    "aten.addcmul.default": _addcmul,
    "aten.addcdiv.default": _addcdiv,
    "aten.baddbmm.default": _baddbmm,
    "aten.glu.default": _glu,
    "aten.reshape_as.default": _reshape_as,
    "aten.view_as.default": _reshape_as,
    "aten.native_channel_shuffle.default": _channel_shuffle,
    "aten.conv_transpose1d.default": _conv_transpose,
    "aten.conv_transpose2d.input": _conv_transpose,
    "aten.conv_transpose3d.input": _conv_transpose,
}
