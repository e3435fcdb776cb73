"""Pools: the winner of a window takes all, or its inputs share by contribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rapkernels.reference._checks import (
    SHARES,
    check_choice,
    check_dim,
    check_like,
    check_list,
    check_pending,
    check_shape,
    check_storage,
    expand,
    require,
)
from rapkernels.reference._state import (
    Relprop,
    accumulate,
    carries_message,
    divide,
    leave,
    read,
    sample_sum,
)

_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_ADAPTIVE_MAX_POOL = {
    1: functional.adaptive_max_pool1d,
    2: functional.adaptive_max_pool2d,
    3: functional.adaptive_max_pool3d,
}


def _check_operands(
    op: str, x: Tensor, relevance: Tensor, psi: Tensor | None, scale: Tensor | None
) -> int:
    """Check what all pools share; return the number of spatial dimensions."""
    check_storage(op, "x", x)
    check_dim(op, "x", x, 3, 5)
    check_dim(op, "relevance", relevance, x.dim(), x.dim())
    check_like(op, "relevance", relevance, "x", x)
    require(
        relevance.shape[:2] == x.shape[:2],
        f"{op}: relevance must have the samples and channels of x {list(x.shape)}, "
        f"got {list(relevance.shape)}",
    )
    check_pending(op, psi, scale, x)
    return x.dim() - 2


def _output_size(
    op: str,
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> list[int]:
    dims = x.dim() - 2
    check_list(op, "kernel_size", kernel_size, dims, 1)
    check_list(op, "stride", stride, dims, 1)
    check_list(op, "padding", padding, dims, 0)
    check_list(op, "dilation", dilation, dims, 1)
    sizes = []
    for axis in range(dims):
        size, kernel, step = x.shape[2 + axis], kernel_size[axis], stride[axis]
        pad, gap = padding[axis], dilation[axis]
        require(
            2 * pad <= kernel,
            f"{op}: padding must be at most half of kernel_size {kernel_size}, got {padding}",
        )
        reach = gap * (kernel - 1) + 1
        room = size + 2 * pad - reach
        require(
            room >= 0,
            f"{op}: x must be at least as large as the window's reach of {reach} in spatial "
            f"dimension {axis} with its padding, got {list(x.shape)}",
        )
        count = (room + step - 1 if ceil_mode else room) // step + 1
        # A window that would start in the padding on the right is dropped.
        sizes.append(count - 1 if ceil_mode and (count - 1) * step >= size + pad else count)
    return sizes


def _winner_takes_all(
    x: Tensor,
    pooled: Tensor,
    winners: Tensor,
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
) -> Relprop:
    incoming = read(relevance, psi)
    # x * gradient of <z, R / z>: a window whose output is 0 has nothing to send.
    met = pooled != 0
    zero = torch.zeros_like(incoming)
    sent = torch.where(met, incoming, zero).flatten(2)
    flat = incoming.new_zeros(*x.shape[:2], x.shape[2:].numel())
    contribution = flat.scatter_add(2, winners.flatten(2), sent).view(x.shape)
    absorbed = sample_sum(torch.where(met, zero, incoming))
    return leave(contribution, absorbed, scale, x.dtype)


def relprop_max_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Relprop:
    """Propagate relevance through a max pool: the winner of each window takes all of it.

    The winner is the first maximum in row-major order, as in torch. As in the RAP authors' code,
    a window whose output is exactly 0 sends nothing: its relevance is absorbed.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        relevance: ``(N, C, *output)``, values of the incoming state, in the dtype of ``x``.
        psi: ``(N,)`` float64, its pending shift, or None for 0.
        scale: ``(N,)`` float64, its pending scale, or None for 1.
        kernel_size: one int, or one per spatial dimension.
        stride: the same; None for the kernel size.
        padding: the same, on both sides.
        dilation: the same.
        ceil_mode: keep the windows that reach over the right edge.

    Returns:
        ``(values, psi, scale, absorbed)``: values shaped like ``x``, the rest ``(N,)`` float64.
        ``psi`` is 0; ``absorbed`` is the relevance of the windows whose output is 0.

    Raises:
        RuntimeError: a shape, dtype or length does not fit.
    """
    op = "relprop_max_pool"
    dims = _check_operands(op, x, relevance, psi, scale)
    kernel_size = expand(kernel_size, dims)
    stride = kernel_size if stride is None else expand(stride, dims)
    padding, dilation = expand(padding, dims), expand(dilation, dims)
    size = _output_size(op, x, kernel_size, stride, padding, dilation, ceil_mode)
    check_shape(op, "relevance", relevance, [*x.shape[:2], *size])
    pooled, winners = _MAX_POOL[dims](
        accumulate(x), kernel_size, stride, padding, dilation, ceil_mode, return_indices=True
    )
    return _winner_takes_all(x, pooled, winners, relevance, psi, scale)


def relprop_adaptive_max_pool(
    x: Tensor, relevance: Tensor, psi: Tensor | None = None, scale: Tensor | None = None
) -> Relprop:
    """Propagate relevance through an adaptive max pool; see :func:`relprop_max_pool`.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        relevance: ``(N, C, *output)``, values of the incoming state, in the dtype of ``x``; its
            spatial shape is the output size of the pool.
        psi: ``(N,)`` float64, its pending shift, or None for 0.
        scale: ``(N,)`` float64, its pending scale, or None for 1.

    Returns:
        ``(values, psi, scale, absorbed)``: values shaped like ``x``, the rest ``(N,)`` float64.
        ``psi`` is 0; ``absorbed`` is the relevance of the windows whose output is 0.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "relprop_adaptive_max_pool"
    dims = _check_operands(op, x, relevance, psi, scale)
    size = _adaptive_size(op, relevance)
    pooled, winners = _ADAPTIVE_MAX_POOL[dims](accumulate(x), size, return_indices=True)
    return _winner_takes_all(x, pooled, winners, relevance, psi, scale)


def _adaptive_size(op: str, relevance: Tensor) -> list[int]:
    require(
        all(size > 0 for size in relevance.shape[2:]),
        f"{op}: relevance must have at least one position per dimension, "
        f"got {list(relevance.shape)}",
    )
    return list(relevance.shape[2:])


def _membership(size: int, spans: list[tuple[int, int]], like: Tensor) -> Tensor:
    """The (outputs, inputs) 0/1 matrix of one spatial dimension: which window holds which input."""
    position = torch.arange(size, device=like.device)
    rows = [(position >= begin) & (position < end) for begin, end in spans]
    return torch.stack(rows).to(like.dtype)


def _share_windows(
    x: Tensor,
    windows: list[Tensor],
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    rule: str,
) -> Relprop:
    incoming = read(relevance, psi)
    weight = accumulate(x).abs() if rule == "absolute" else accumulate(x)
    whole = weight
    for axis, window in enumerate(windows, start=2):
        whole = torch.movedim(torch.movedim(whole, axis, -1) @ window.T, -1, axis)
    met = carries_message(whole)
    spread = divide(incoming, whole, met)
    for axis, window in enumerate(windows, start=2):
        spread = torch.movedim(torch.movedim(spread, axis, -1) @ window, -1, axis)
    absorbed = sample_sum(torch.where(met, torch.zeros_like(incoming), incoming))
    return leave(weight * spread, absorbed, scale, x.dtype)


def relprop_avg_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    rule: str = "absolute",
) -> Relprop:
    """Propagate relevance through an average pool, whose divisor cancels.

    Within each window rule "absolute" shares by ``|x_i| / sum |x|``, rule "ratio" by
    ``x_i / sum x``, as the RAP authors' code does (the same for ``x >= 0``, unbounded otherwise).

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        relevance: ``(N, C, *output)``, values of the incoming state, in the dtype of ``x``.
        psi: ``(N,)`` float64, its pending shift, or None for 0.
        scale: ``(N,)`` float64, its pending scale, or None for 1.
        kernel_size: one int, or one per spatial dimension.
        stride: the same; None for the kernel size.
        padding: the same, on both sides.
        ceil_mode: keep the windows that reach over the right edge.
        rule: "absolute" or "ratio".

    Returns:
        ``(values, psi, scale, absorbed)``: values shaped like ``x``, the rest ``(N,)`` float64.
        ``psi`` is 0; ``absorbed`` is the relevance of the windows whose sum is 0.

    Raises:
        RuntimeError: a shape, dtype, rule or length does not fit.
    """
    op = "relprop_avg_pool"
    dims = _check_operands(op, x, relevance, psi, scale)
    kernel_size = expand(kernel_size, dims)
    stride = kernel_size if stride is None else expand(stride, dims)
    padding = expand(padding, dims)
    check_choice(op, rule, SHARES)
    size = _output_size(op, x, kernel_size, stride, padding, [1] * dims, ceil_mode)
    check_shape(op, "relevance", relevance, [*x.shape[:2], *size])
    windows = []
    for axis in range(dims):
        begins = [index * stride[axis] - padding[axis] for index in range(size[axis])]
        spans = [(begin, begin + kernel_size[axis]) for begin in begins]
        windows.append(_membership(x.shape[2 + axis], spans, accumulate(x)))
    return _share_windows(x, windows, relevance, psi, scale, rule)


def relprop_adaptive_avg_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    rule: str = "absolute",
) -> Relprop:
    """Propagate relevance through an adaptive average pool; see :func:`relprop_avg_pool`.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        relevance: ``(N, C, *output)``, values of the incoming state, in the dtype of ``x``; its
            spatial shape is the output size of the pool.
        psi: ``(N,)`` float64, its pending shift, or None for 0.
        scale: ``(N,)`` float64, its pending scale, or None for 1.
        rule: "absolute" or "ratio".

    Returns:
        ``(values, psi, scale, absorbed)``: values shaped like ``x``, the rest ``(N,)`` float64.
        ``psi`` is 0; ``absorbed`` is the relevance of the windows whose sum is 0.

    Raises:
        RuntimeError: a shape, dtype or rule does not fit.
    """
    op = "relprop_adaptive_avg_pool"
    dims = _check_operands(op, x, relevance, psi, scale)
    check_choice(op, rule, SHARES)
    size = _adaptive_size(op, relevance)
    windows = []
    for axis in range(dims):
        inputs, outputs = x.shape[2 + axis], size[axis]
        spans = [
            (index * inputs // outputs, -(-(index + 1) * inputs // outputs))
            for index in range(outputs)
        ]
        windows.append(_membership(inputs, spans, accumulate(x)))
    return _share_windows(x, windows, relevance, psi, scale, rule)
