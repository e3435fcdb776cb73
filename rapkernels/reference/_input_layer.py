"""The z-box rule of the input layer (Eq. 10)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rapkernels.reference._checks import (
    check_bound,
    check_linear,
    check_pending,
    check_stabilizer,
)
from rapkernels.reference._convolution import ConvMap, LinearMap, conv_map
from rapkernels.reference._scalar_rules import not_handed_on, stabilized_quotient
from rapkernels.reference._state import Relprop, accumulate, leave, read, sample_sum
from rapkernels.reference._targets import for_each_target


def _zbox(
    layer: LinearMap | ConvMap,
    x: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    stabilizer: float,
) -> Relprop:
    w_pos, w_neg = accumulate(weight).clamp(min=0), accumulate(weight).clamp(max=0)
    above, below = accumulate(x) - accumulate(low), accumulate(x) - accumulate(high)
    z = layer.forward(above, w_pos) + layer.forward(below, w_neg)
    above, below, z = (for_each_target(tensor, relevance) for tensor in (above, below, z))
    incoming = read(relevance, psi)
    s = stabilized_quotient(incoming, z, stabilizer)
    contribution = above * layer.adjoint(s, w_pos) + below * layer.adjoint(s, w_neg)
    absorbed = not_handed_on(incoming, s * z)
    return leave(contribution, sample_sum(absorbed), scale, x.dtype)


def relprop_zbox_linear(
    x: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stabilizer: float = 0.0,
) -> Relprop:
    """Propagate relevance through a linear input layer by the z-box rule (Eq. 10), without shift.

    Eq. 10 without its cancellation, with ``w+`` and ``w-`` the signed parts of the weights:

        Z_j = sum_i (x_i - low_i) w+_ij + (x_i - high_i) w-_ij
        R_i = (x_i - low_i) sum_j w+_ij R_j / Z_j  +  (x_i - high_i) sum_j w-_ij R_j / Z_j

    The bias cancels from ``Z_j``, here as in the library zennit, whose stabilizer enters as
    ``Z_j + stabilizer sign(Z_j)``, ``sign(0) = 1``.

    Args:
        x: ``(N, *, I)``, the network's input, float64, float32, bfloat16 or float16.
        weight: ``(O, I)``, in the dtype of ``x``.
        low: the lowest possible input, broadcastable to ``x``, in its dtype.
        high: the highest possible input, broadcastable to ``x``, in its dtype.
        relevance: ``(T N, *, O)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, that of target t and sample n at ``t N + n``.
        psi: ``(T N,)`` float64, its pending shift, or None for 0.
        scale: ``(T N,)`` float64, its pending scale, or None for 1.
        stabilizer: added to the magnitude of ``Z_j``.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T N, ...)``, else shaped like ``x``, the rest
        ``(T N,)`` float64. ``psi`` is 0; ``absorbed`` is the relevance of the outputs with
        ``Z_j = 0`` and what the stabilizer took.

    Raises:
        RuntimeError: a shape or dtype does not fit, or the stabilizer is negative or not finite.
    """
    op = "relprop_zbox_linear"
    check_linear(op, x, weight, relevance)
    check_bound(op, "low", low, x)
    check_bound(op, "high", high, x)
    check_pending(op, psi, scale, relevance)
    check_stabilizer(op, stabilizer)
    return _zbox(LinearMap(), x, weight, low, high, relevance, psi, scale, stabilizer)


def relprop_zbox_conv(
    x: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    stabilizer: float = 0.0,
) -> Relprop:
    """Propagate relevance through a convolutional input layer by the z-box rule (Eq. 10).

    The equation is that of :func:`relprop_zbox_linear`. The bounds are 0 in the padding.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        weight: ``(O, C / groups, *kernel)``, in the dtype of ``x``.
        low: the lowest possible input, broadcastable to ``x``, in its dtype.
        high: the highest possible input, broadcastable to ``x``, in its dtype.
        relevance: ``(T N, O, *output)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, that of target t and sample n at ``t N + n``.
        psi: ``(T N,)`` float64, its pending shift, or None for 0.
        scale: ``(T N,)`` float64, its pending scale, or None for 1.
        stride: one int, or one per spatial dimension.
        padding: one int, or (low, high) for each spatial dimension, the first dimension first.
        dilation: one int, or one per spatial dimension.
        groups: the number of blocked connections from input to output channels.
        stabilizer: added to the magnitude of ``Z_j``.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T N, ...)``, else shaped like ``x``, the rest
        ``(T N,)`` float64. ``psi`` is 0; ``absorbed`` is the relevance of the outputs with
        ``Z_j = 0`` and what the stabilizer took.

    Raises:
        RuntimeError: a shape, dtype or length does not fit, or the stabilizer is negative or not
            finite.
    """
    op = "relprop_zbox_conv"
    layer = conv_map(op, x, weight, relevance, stride, padding, dilation, groups)
    check_bound(op, "low", low, x)
    check_bound(op, "high", high, x)
    check_pending(op, psi, scale, relevance)
    check_stabilizer(op, stabilizer)
    return _zbox(layer, x, weight, low, high, relevance, psi, scale, stabilizer)
