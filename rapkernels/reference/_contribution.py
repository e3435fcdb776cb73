"""RAP of linear and convolution layers (Eqs. 7-9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rapkernels.reference._checks import (
    RULES,
    check_choice,
    check_like,
    check_linear,
    check_pending,
    check_per_sample,
    check_samples,
    check_shape,
)
from rapkernels.reference._convolution import ConvMap, LinearMap, conv_map
from rapkernels.reference._state import (
    Relprop,
    accumulate,
    carries_message,
    divide,
    leave_shifted,
    read,
    sample_sum,
)
from rapkernels.relevance import saturate


def quotients(
    relevance: Tensor, positive: Tensor, negative: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """The scalar rule ``(R, Z+, |Z-|) -> (S+, S-)`` of each output."""
    meets_positive, meets_negative = carries_message(positive), carries_message(negative)
    both = positive + negative
    shared = divide(relevance, both, meets_negative & carries_message(both))
    if rule == "rap":
        return divide(relevance, positive, meets_positive), shared
    return (
        divide(relevance.clamp(min=0), positive, meets_positive),
        divide(relevance.clamp(max=0), negative, meets_negative) + shared,
    )


def _contributions(
    layer: LinearMap | ConvMap, x: Tensor, weight: Tensor, relevance: Tensor, rule: str
) -> Tensor:
    w_pos, w_neg = weight.clamp(min=0), (-weight).clamp(min=0)
    x_pos, x_neg = x.clamp(min=0), (-x).clamp(min=0)
    # Messages are signed by x w: those of x- change sides.
    z_pos = layer.forward(x_pos, w_pos) + layer.forward(x_neg, w_neg)
    z_neg = layer.forward(x_pos, w_neg) + layer.forward(x_neg, w_pos)
    s_pos, s_neg = quotients(relevance, z_pos, z_neg, rule)
    return x_pos * (layer.adjoint(s_pos, w_pos) + layer.adjoint(s_neg, w_neg)) + x_neg * (
        layer.adjoint(s_pos, w_neg) + layer.adjoint(s_neg, w_pos)
    )


def relprop_linear(
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    rule: str = "rap",
    nonnegative: bool = False,  # noqa: ARG001
) -> Relprop:
    """Propagate relevance through ``x weight^T`` by RAP (Eqs. 7-9 of the RAP paper).

    With the messages ``m_ij = x_i w_ij``, their positive sum ``Z+_j`` and the magnitude ``Z-_j`` of
    their negative sum, the contributions of rule "rap" are (Eq. 7)

        C_i = sum_j m+_ij R_j / Z+_j  +  sum_j |m-_ij| R_j / (Z+_j + Z-_j)

    and rule "rap_conv" sends negative relevance through the negative messages alone, as the
    authors' code does in convolutions:

        C_i = sum_j m+_ij max(R_j, 0) / Z+_j
              + sum_j |m-_ij| (min(R_j, 0) / Z-_j + R_j / (Z+_j + Z-_j)).

    The uniform shift (Eqs. 8-9) ``psi = (sum C - sum R) / #[C != 0]`` of each sample is left
    pending, over all dimensions but the first. The bias of the layer plays no part.

    Args:
        x: ``(N, *, I)``, the layer's input, float64, float32, bfloat16 or float16.
        weight: ``(O, I)``, in the dtype of ``x``.
        relevance: ``(N, *, O)``, values of the incoming state, in the dtype of ``x``.
        psi: ``(N,)`` float64, its pending shift, or None for 0.
        scale: ``(N,)`` float64, its pending scale, or None for 1.
        rule: "rap" or "rap_conv".
        nonnegative: the caller's promise that no entry of ``x`` is negative, which saves work.

    Returns:
        ``(values, psi, scale, absorbed)``: values shaped like ``x``, the rest ``(N,)`` float64.
        ``absorbed`` is the relevance of a sample in which no message was met, else 0.

    Raises:
        RuntimeError: a shape, dtype or rule does not fit.
    """
    op = "relprop_linear"
    check_linear(op, x, weight, relevance)
    check_pending(op, psi, scale, x)
    check_choice(op, rule, RULES)
    incoming = read(relevance, psi)
    contribution = _contributions(LinearMap(), accumulate(x), accumulate(weight), incoming, rule)
    return leave_shifted(contribution, sample_sum(incoming), scale, x.dtype)


def relprop_conv(
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    rule: str = "rap_conv",
    nonnegative: bool = False,  # noqa: ARG001
) -> Relprop:
    """Propagate relevance through a 1-d, 2-d or 3-d convolution by RAP (Eqs. 7-9).

    The equations are those of :func:`relprop_linear`; "rap_conv" is the published code's rule for
    convolutions, "rap" the paper's Eq. 7. Both are the same where the relevance is not negative.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        weight: ``(O, C / groups, *kernel)``, in the dtype of ``x``.
        z: the convolution of ``x`` without bias, in the dtype of ``x``, where it is at hand
            already, or None.
        relevance: ``(N, O, *output)``, values of the incoming state, in the dtype of ``x``.
        psi: ``(N,)`` float64, its pending shift, or None for 0.
        scale: ``(N,)`` float64, its pending scale, or None for 1.
        stride: one int, or one per spatial dimension.
        padding: one int, or (low, high) for each spatial dimension, the first dimension first.
        dilation: one int, or one per spatial dimension.
        groups: the number of blocked connections from input to output channels.
        rule: "rap_conv" or "rap".
        nonnegative: the caller's promise that no entry of ``x`` is negative, which saves work.

    Returns:
        ``(values, psi, scale, absorbed)``: values shaped like ``x``, the rest ``(N,)`` float64.
        ``absorbed`` is the relevance of a sample in which no message was met, else 0.

    Raises:
        RuntimeError: a shape, dtype, rule or length does not fit.
    """
    op = "relprop_conv"
    layer = conv_map(op, x, weight, relevance, stride, padding, dilation, groups)
    check_pending(op, psi, scale, x)
    if z is not None:
        check_like(op, "z", z, "x", x)
        check_shape(op, "z", z, relevance.shape)
    check_choice(op, rule, RULES)
    incoming = read(relevance, psi)
    contribution = _contributions(layer, accumulate(x), accumulate(weight), incoming, rule)
    return leave_shifted(contribution, sample_sum(incoming), scale, x.dtype)


def split_quotient(
    z: Tensor, a: Tensor, relevance: Tensor, psi: Tensor | None = None, rule: str = "rap"
) -> tuple[Tensor, Tensor, Tensor]:
    """The quotient of Eq. 7 from ``z = w * x`` and ``a = |w| * |x|``, without the split sums.

    ``Z+ = (a + z) / 2`` and ``Z- = (a - z) / 2``; what is not above ``8 eps a`` is rounding and
    counts as 0.

    Args:
        z: ``(N, ...)``, float64, float32, bfloat16 or float16.
        a: like ``z``.
        relevance: like ``z``, values of the incoming state.
        psi: ``(N,)`` float64, its pending shift, or None for 0.
        rule: "rap" or "rap_conv".

    Returns:
        ``(S+, S-, total)``: the quotients in the dtype of ``z`` (its largest number where they
        overflow), and the sum of the shifted relevance, ``(N,)`` float64.

    Raises:
        RuntimeError: a shape, dtype or rule does not fit.
    """
    op = "split_quotient"
    check_samples(op, "z", z)
    check_like(op, "a", a, "z", z)
    check_like(op, "relevance", relevance, "z", z)
    check_shape(op, "a", a, z.shape)
    check_shape(op, "relevance", relevance, z.shape)
    check_per_sample(op, "psi", psi, z)
    check_choice(op, rule, RULES)
    incoming = read(relevance, psi)
    z, a = accumulate(z), accumulate(a)
    rounding = 8 * torch.finfo(z.dtype).eps * a
    zero = torch.zeros_like(z)
    positive, negative = (a + z) / 2, (a - z) / 2
    s_pos, s_neg = quotients(
        incoming,
        torch.where(positive > rounding, positive, zero),
        torch.where(negative > rounding, negative, zero),
        rule,
    )
    dtype = relevance.dtype
    return saturate(s_pos, dtype), saturate(s_neg, dtype), sample_sum(incoming)


def gate(
    x: Tensor, gradient: Tensor, total: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions ``C = x gradient`` with the uniform shift to ``total`` pending (Eqs. 8-9).

    Args:
        x: ``(N, ...)``, float64, float32, bfloat16 or float16.
        gradient: like ``x``.
        total: ``(N,)`` float64, the sum that each sample is shifted to, or None for no shift.
        scale: ``(N,)`` float64, the pending scale of ``gradient`` and ``total``, or None for 1.

    Returns:
        ``(values, psi, scale)`` of the state: values shaped like ``x``, the rest ``(N,)`` float64.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "gate"
    check_samples(op, "x", x)
    check_like(op, "gradient", gradient, "x", x)
    check_shape(op, "gradient", gradient, x.shape)
    check_per_sample(op, "total", total, x)
    check_per_sample(op, "scale", scale, x)
    contribution = accumulate(x) * accumulate(gradient)
    target = sample_sum(contribution) if total is None else total
    values, psi, scale, _ = leave_shifted(contribution, target, scale, x.dtype)
    return values, torch.zeros_like(psi) if total is None else psi, scale
