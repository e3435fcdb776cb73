"""Sharing Ratio Decomposition (Han et al., ICLR 2024, arXiv 2402.03348).

The unit is the pointwise feature vector: all channels at one position. From the paper are this
unit, the decomposition of the pre-activation into what each vector of the layer below contributes,
and that sharing ratios are carried on to the layer below. Reconstructed, because the paper's
equations were not at hand: the sharing ratio itself as the normalised inner product

    mu_ij = <v_ij, v_j> / ||v_j||^2,    v_j = sum_i v_ij,    v_ij = W_ij x_i + b / |RF_j|,

the equal share of the bias for each of the |RF_j| taps of the kernel that lie inside of the input,
and that taps in the padding take no share, neither by weight nor of the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rapkernels.reference._checks import (
    check_like,
    check_linear,
    check_pending,
    check_shape,
    check_storage,
    check_targets,
    require,
)
from rapkernels.reference._convolution import conv_map
from rapkernels.reference._state import TINY, Relprop, accumulate, divide, leave, read, sample_sum
from rapkernels.reference._targets import for_each_target


class _Shared(NamedTuple):
    """The relevance of vectors, made ready to be sent back through the weights."""

    gradient: Tensor  # G = v R / ||v||^2, shaped like the relevance
    bias: Tensor | None  # of each vector, what each tap of its kernel gets of the bias, float64
    absorbed: Tensor  # (T N,) float64


def _squared_norm(vector: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``||v||^2`` in float64, and whether it carries relevance; ``dim`` is that of the channels."""
    square = vector.to(torch.float64).square().sum(dim, keepdim=True)
    return square, (square > TINY[vector.dtype] ** 2) & torch.isfinite(square)


def _share(
    vector: Tensor, bias: Tensor | None, taps: Tensor | None, incoming: Tensor, dim: int
) -> _Shared:
    """Divide the relevance of vectors; ``bias`` broadcasts to them, ``taps`` to their positions."""
    total = incoming.sum(dim, keepdim=True, dtype=torch.float64)
    square, met = _squared_norm(vector, dim)
    if taps is not None:
        # What saw nothing but padding is bias alone, and has nobody to hand its relevance to.
        met = met & (taps > 0)
    wide, unit = for_each_target(vector.to(torch.float64), incoming), for_each_target(met, incoming)
    square = for_each_target(square, incoming)
    gradient = divide(wide * total, square, unit).to(vector.dtype)
    absorbed = sample_sum(torch.where(unit, torch.zeros_like(total), total))
    if bias is None:
        return _Shared(gradient, None, absorbed)
    along = (wide * bias).sum(dim, keepdim=True)
    share = divide(total * along, square, unit)
    return _Shared(gradient, share if taps is None else share / taps.clamp(min=1), absorbed)


def share_squares(
    v: Tensor, relevance: Tensor, psi: Tensor | None = None, scale: Tensor | None = None
) -> Relprop:
    """Collapse relevance over the channels of each position and share it by squares.

    With the vector ``v`` of a position, channel c gets ``v_c^2 / sum_k v_k^2 * sum_k R_k``. That is
    what Sharing Ratio Decomposition's ``mu`` comes to in a layer whose channels have one sender
    each, such as a max pool; ``mu`` is reconstructed, see :func:`relprop_sharing_conv`.

    Args:
        v: ``(N, C, *size)``, float64, float32, bfloat16 or float16.
        relevance: ``(T * N, C, *size)``, values of the incoming state, in the dtype of ``v``: T
            relevances of each sample, all samples of the first target first.
        psi: ``(T * N,)`` float64, its pending shift, or None for 0.
        scale: ``(T * N,)`` float64, its pending scale, or None for 1.

    Returns:
        ``(values, psi, scale, absorbed)``: values shaped like ``relevance``, the rest ``(T * N,)``
        float64. ``psi`` is 0; ``absorbed`` is the relevance of the positions whose vector is 0.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "share_squares"
    check_storage(op, "v", v)
    require(v.dim() >= 2, f"{op}: v must have at least 2 dimensions (N, C, ...), got {v.dim()}")
    check_like(op, "relevance", relevance, "v", v)
    check_targets(op, "relevance", relevance, "v", v, v.shape[1:])
    check_pending(op, psi, scale, relevance)
    incoming, vector = read(relevance, psi), accumulate(v)
    shared = _share(vector, None, None, incoming, dim=1)
    contribution = for_each_target(vector, incoming) * shared.gradient
    return leave(contribution, shared.absorbed, scale, v.dtype)


def relprop_sharing_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Relprop:
    """Propagate relevance through a 1-d, 2-d or 3-d convolution by Sharing Ratio Decomposition.

    Position j of the output has the vector ``v_j = z_j + b`` and the relevance ``R_j``, the sum of
    its channels. Position i of the input gets ``sum_j mu_ij R_j`` with

        mu_ij = <W_ij x_i + b / |RF_j|, v_j> / ||v_j||^2,    sum_i mu_ij = 1,

    where ``|RF_j|`` counts the taps of the kernel inside of the input. With ``G = v R / ||v||^2``
    that is ``x T_W(G)`` summed over the channels, plus what the transposed one-channel convolution
    with ones makes of ``R_j <v_j, b> / (||v_j||^2 |RF_j|)``. The result keeps the channels: the
    share of the bias is spread evenly over those of a position, and the sum over them is what the
    method defines.

    Han et al., "Respect the model: Fine-grained and Robust Explanation with Sharing Ratio
    Decomposition", ICLR 2024. Vectors of positions and their decomposition by sharing ratios are
    the paper's; the definition of ``mu`` is from memory and the shares of bias and padding are
    inferred, since the paper's equations were not at hand.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        weight: ``(O, C / groups, *kernel)``, in the dtype of ``x``.
        bias: ``(O,)``, in the dtype of ``x``, or None.
        z: the convolution of ``x`` without bias, in the dtype of ``x``, where it is at hand
            already, or None.
        relevance: ``(T * N, O, *output)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, all samples of the first target first.
        psi: ``(T * N,)`` float64, its pending shift, or None for 0.
        scale: ``(T * N,)`` float64, its pending scale, or None for 1.
        stride: one int, or one per spatial dimension.
        padding: one int, or (low, high) for each spatial dimension, the first dimension first.
        dilation: one int, or one per spatial dimension.
        groups: the number of blocked connections from input to output channels.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T * N, C, *size)``, the rest ``(T * N,)``
        float64. ``psi`` is 0; ``absorbed`` is the relevance of the positions whose vector is 0 or
        whose kernel lies in the padding.

    Raises:
        RuntimeError: a shape, dtype or length does not fit.
    """
    op = "relprop_sharing_conv"
    layer = conv_map(op, x, weight, relevance, stride, padding, dilation, groups)
    if bias is not None:
        check_like(op, "bias", bias, "x", x)
        check_shape(op, "bias", bias, weight.shape[:1])
    if z is not None:
        check_like(op, "z", z, "x", x)
        check_shape(op, "z", z, [x.shape[0], *relevance.shape[1:]])
    check_pending(op, psi, scale, relevance)
    incoming = read(relevance, psi)
    x, weight = accumulate(x), accumulate(weight)
    # One channel of ones counts the taps, and its adjoint sends to each of them.
    single = replace(layer, groups=1)
    kernel = x.new_ones(1, 1, *weight.shape[2:], dtype=torch.float64)
    taps = single.forward(x.new_ones(1, 1, *x.shape[2:], dtype=torch.float64), kernel)
    vector, along = layer.forward(x, weight), None
    if bias is not None:
        along = accumulate(bias).view(-1, *[1] * (x.dim() - 2))
        vector = vector + along
    shared = _share(vector, along, taps, incoming, dim=1)
    contribution = for_each_target(x, incoming) * layer.adjoint(shared.gradient, weight)
    if shared.bias is not None:
        share = single.adjoint(shared.bias, kernel) / x.shape[1]
        contribution = contribution + share.to(contribution.dtype)
    return leave(contribution, shared.absorbed, scale, relevance.dtype)


def relprop_sharing_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
) -> Relprop:
    """Propagate relevance through ``x weight^T + bias`` by Sharing Ratio Decomposition.

    The rule of :func:`relprop_sharing_conv` for a kernel of one position: the vectors lie along the
    last dimension. What the bias takes of a vector, ``R <v, b> / ||v||^2``, is spread evenly over
    the I inputs.

    Args:
        x: ``(N, *, I)``, the layer's input, float64, float32, bfloat16 or float16.
        weight: ``(O, I)``, in the dtype of ``x``.
        bias: ``(O,)``, in the dtype of ``x``, or None.
        relevance: ``(T * N, *, O)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, all samples of the first target first.
        psi: ``(T * N,)`` float64, its pending shift, or None for 0.
        scale: ``(T * N,)`` float64, its pending scale, or None for 1.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T * N, *, I)``, the rest ``(T * N,)`` float64.
        ``psi`` is 0; ``absorbed`` is the relevance of the rows whose vector is 0.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "relprop_sharing_linear"
    check_linear(op, x, weight, relevance)
    if bias is not None:
        check_like(op, "bias", bias, "x", x)
        check_shape(op, "bias", bias, weight.shape[:1])
    check_pending(op, psi, scale, relevance)
    incoming = read(relevance, psi)
    x, weight = accumulate(x), accumulate(weight)
    along = None if bias is None else accumulate(bias)
    vector = torch.nn.functional.linear(x, weight, along)
    shared = _share(vector, along, None, incoming, dim=-1)
    contribution = for_each_target(x, incoming) * (shared.gradient @ weight)
    if shared.bias is not None:
        contribution = contribution + (shared.bias / x.shape[-1]).to(contribution.dtype)
    return leave(contribution, shared.absorbed, scale, relevance.dtype)
