"""Pools: the winner of a window takes all, or its inputs share by contribution."""

from __future__ import annotations

import functools
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
    check_stabilizer,
    check_storage,
    expand,
    require,
)
from rapkernels.reference._shares import share, stabilized
from rapkernels.reference._state import (
    Relprop,
    accumulate,
    carries_message,
    divide,
    leave,
    read,
    sample_sum,
)
from rapkernels.reference._targets import for_each_target, has_targets

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
        relevance.shape[1] == x.shape[1] and has_targets(x, relevance),
        f"{op}: relevance must have the samples and channels of x {list(x.shape)}, "
        f"got {list(relevance.shape)}",
    )
    check_pending(op, psi, scale, relevance)
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
    absorb_zeros: bool,
) -> Relprop:
    incoming = read(relevance, psi)
    # x * gradient of <z, R / z>: a window whose output is 0 has nothing to send.
    met = pooled != 0 if absorb_zeros else torch.ones_like(pooled, dtype=torch.bool)
    met, winners = for_each_target(met, relevance), for_each_target(winners, relevance)
    zero = torch.zeros_like(incoming)
    sent = torch.where(met, incoming, zero).flatten(2)
    flat = incoming.new_zeros(*relevance.shape[:2], x.shape[2:].numel())
    contribution = flat.scatter_add(2, winners.flatten(2), sent)
    contribution = contribution.view(*relevance.shape[:2], *x.shape[2:])
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
    absorb_zeros: bool = True,
) -> Relprop:
    """Propagate relevance through a max pool: the winner of each window takes all of it.

    The winner is the first maximum in row-major order, as in torch. As in the RAP authors' code,
    a window whose output is exactly 0 sends nothing: its relevance is absorbed. With
    ``absorb_zeros=False`` its first maximum takes that relevance too, as in the Attribution
    Equilibrium authors' code, whose max pools see ``max(x, 0) + 1e-9``; the caller clamps ``x``.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        relevance: ``(T * N, C, *output)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, all samples of the first target first.
        psi: ``(T * N,)`` float64, its pending shift, or None for 0.
        scale: ``(T * N,)`` float64, its pending scale, or None for 1.
        kernel_size: one int, or one per spatial dimension.
        stride: the same; None for the kernel size.
        padding: the same, on both sides.
        dilation: the same.
        ceil_mode: keep the windows that reach over the right edge.
        absorb_zeros: whether a window whose output is 0 keeps its relevance.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T * N, C, *size)``, the rest ``(T * N,)``
        float64. ``psi`` is 0; ``absorbed`` is the relevance that windows kept.

    Raises:
        RuntimeError: a shape, dtype or length does not fit.
    """
    op = "relprop_max_pool"
    dims = _check_operands(op, x, relevance, psi, scale)
    kernel_size = expand(kernel_size, dims)
    stride = kernel_size if stride is None else expand(stride, dims)
    padding, dilation = expand(padding, dims), expand(dilation, dims)
    size = _output_size(op, x, kernel_size, stride, padding, dilation, ceil_mode)
    check_shape(op, "relevance", relevance, [*relevance.shape[:2], *size])
    pooled, winners = _MAX_POOL[dims](
        accumulate(x), kernel_size, stride, padding, dilation, ceil_mode, return_indices=True
    )
    return _winner_takes_all(x, pooled, winners, relevance, psi, scale, absorb_zeros)


def relprop_adaptive_max_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    absorb_zeros: bool = True,
) -> Relprop:
    """Propagate relevance through an adaptive max pool; see :func:`relprop_max_pool`.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        relevance: ``(T * N, C, *output)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, all samples of the first target first; its spatial shape is
            the output size of the pool.
        psi: ``(T * N,)`` float64, its pending shift, or None for 0.
        scale: ``(T * N,)`` float64, its pending scale, or None for 1.
        absorb_zeros: whether a window whose output is 0 keeps its relevance.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T * N, C, *size)``, the rest ``(T * N,)``
        float64. ``psi`` is 0; ``absorbed`` is the relevance that windows kept.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "relprop_adaptive_max_pool"
    dims = _check_operands(op, x, relevance, psi, scale)
    size = _adaptive_size(op, relevance)
    pooled, winners = _ADAPTIVE_MAX_POOL[dims](accumulate(x), size, return_indices=True)
    return _winner_takes_all(x, pooled, winners, relevance, psi, scale, absorb_zeros)


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
    divisors: list[Tensor],
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    rule: str,
    stabilizer: float,
) -> Relprop:
    incoming = read(relevance, psi)
    weight = share(accumulate(x), rule)
    whole = weight
    for axis, window in enumerate(windows, start=2):
        whole = torch.movedim(torch.movedim(whole, axis, -1) @ window.T, -1, axis)
    # The sums are kept from 0 by what keeps the averages from it.
    divisor = functools.reduce(lambda a, b: a[..., None] * b, divisors)
    whole, added = stabilized(for_each_target(whole, relevance), stabilizer * divisor)
    met = carries_message(whole)
    spread = divide(incoming, whole, met)
    absorbed = sample_sum(torch.where(met, added * spread, incoming))
    for axis, window in enumerate(windows, start=2):
        spread = torch.movedim(torch.movedim(spread, axis, -1) @ window, -1, axis)
    return leave(for_each_target(weight, relevance) * spread, absorbed, scale, x.dtype)


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
    stabilizer: float = 0.0,
) -> Relprop:
    """Propagate relevance through an average pool, whose divisor cancels.

    Within each window rule "absolute" shares by ``|x_i| / sum |x|``, rule "ratio" by
    ``x_i / sum x``, as the RAP authors' code does (the same for ``x >= 0``, unbounded otherwise),
    and rule "positive" by ``p_i / sum p`` with ``p = max(x, 0) + 1e-9``, as the Attribution
    Equilibrium authors' code does. ``stabilizer`` is added to the average (the sum over the size of
    the kernel) before it divides, with its sign (+ for 0).

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        relevance: ``(T * N, C, *output)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, all samples of the first target first.
        psi: ``(T * N,)`` float64, its pending shift, or None for 0.
        scale: ``(T * N,)`` float64, its pending scale, or None for 1.
        kernel_size: one int, or one per spatial dimension.
        stride: the same; None for the kernel size.
        padding: the same, on both sides.
        ceil_mode: keep the windows that reach over the right edge.
        rule: "absolute", "ratio" or "positive".
        stabilizer: what the averages are kept away from 0 by, at least 0.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T * N, C, *size)``, the rest ``(T * N,)``
        float64. ``psi`` is 0; ``absorbed`` is the relevance of the windows whose sum is 0, and what
        the stabilizer took.

    Raises:
        RuntimeError: a shape, dtype, rule, stabilizer or length does not fit.
    """
    op = "relprop_avg_pool"
    dims = _check_operands(op, x, relevance, psi, scale)
    kernel_size = expand(kernel_size, dims)
    stride = kernel_size if stride is None else expand(stride, dims)
    padding = expand(padding, dims)
    check_choice(op, rule, SHARES)
    check_stabilizer(op, stabilizer)
    size = _output_size(op, x, kernel_size, stride, padding, [1] * dims, ceil_mode)
    check_shape(op, "relevance", relevance, [*relevance.shape[:2], *size])
    windows, divisors = [], []
    for axis in range(dims):
        begins = [index * stride[axis] - padding[axis] for index in range(size[axis])]
        spans = [(begin, begin + kernel_size[axis]) for begin in begins]
        windows.append(_membership(x.shape[2 + axis], spans, accumulate(x)))
        divisors.append(torch.full_like(windows[-1][:, 0], kernel_size[axis]))
    return _share_windows(x, windows, divisors, relevance, psi, scale, rule, stabilizer)


def relprop_adaptive_avg_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    rule: str = "absolute",
    stabilizer: float = 0.0,
) -> Relprop:
    """Propagate relevance through an adaptive average pool; see :func:`relprop_avg_pool`.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        relevance: ``(T * N, C, *output)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, all samples of the first target first; its spatial shape is
            the output size of the pool.
        psi: ``(T * N,)`` float64, its pending shift, or None for 0.
        scale: ``(T * N,)`` float64, its pending scale, or None for 1.
        rule: "absolute", "ratio" or "positive".
        stabilizer: what the averages are kept away from 0 by, at least 0.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T * N, C, *size)``, the rest ``(T * N,)``
        float64. ``psi`` is 0; ``absorbed`` is the relevance of the windows whose sum is 0, and what
        the stabilizer took.

    Raises:
        RuntimeError: a shape, dtype, rule or stabilizer does not fit.
    """
    op = "relprop_adaptive_avg_pool"
    dims = _check_operands(op, x, relevance, psi, scale)
    check_choice(op, rule, SHARES)
    check_stabilizer(op, stabilizer)
    size = _adaptive_size(op, relevance)
    windows, divisors = [], []
    for axis in range(dims):
        inputs, outputs = x.shape[2 + axis], size[axis]
        spans = [
            (index * inputs // outputs, -(-(index + 1) * inputs // outputs))
            for index in range(outputs)
        ]
        windows.append(_membership(inputs, spans, accumulate(x)))
        divisors.append(windows[-1].sum(1))
    return _share_windows(x, windows, divisors, relevance, psi, scale, rule, stabilizer)
