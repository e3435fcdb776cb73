"""Linear and convolution layers: RAP (Eqs. 7-9) and the LRP rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rapkernels.reference._checks import (
    check_choice,
    check_like,
    check_linear,
    check_pending,
    check_per_sample,
    check_samples,
    check_shape,
    check_targets,
    require,
)
from rapkernels.reference._convolution import ConvMap, LinearMap, conv_map
from rapkernels.reference._scalar_rules import (
    PRECISIONS,
    SHIFTED,
    check_rule,
    not_handed_on,
    quotients,
    rap_quotients,
)
from rapkernels.reference._state import (
    Relprop,
    accumulate,
    leave,
    leave_shifted,
    read,
    sample_sum,
)
from rapkernels.reference._targets import for_each_target
from rapkernels.relevance import saturate


def _parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return tensor.clamp(min=0), (-tensor).clamp(min=0)


def _split_sums(layer: LinearMap | ConvMap, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Z+ and Z-: messages are signed by x w, those of x- change sides."""
    (w_pos, w_neg), (x_pos, x_neg) = _parts(weight), _parts(x)
    return (
        layer.forward(x_pos, w_pos) + layer.forward(x_neg, w_neg),
        layer.forward(x_pos, w_neg) + layer.forward(x_neg, w_pos),
    )


def _propagate(
    layer: LinearMap | ConvMap,
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    rule: str,
    bias: Tensor | None,
    parameters: Sequence[float],
) -> Relprop:
    dtype, incoming = x.dtype, read(relevance, psi)
    x, weight = accumulate(x), accumulate(weight)
    offset = weight.new_zeros(weight.shape[0]) if bias is None else accumulate(bias)
    (w_pos, w_neg), (x_pos, x_neg) = _parts(weight), _parts(x)
    z_pos, z_neg = _split_sums(layer, x, weight)
    x_pos, x_neg, z_pos, z_neg = (
        for_each_target(tensor, relevance) for tensor in (x_pos, x_neg, z_pos, z_neg)
    )
    s_pos, s_neg = quotients(incoming, z_pos, z_neg, layer.per_output(offset), rule, parameters)
    contribution = x_pos * (layer.adjoint(s_pos, w_pos) + layer.adjoint(s_neg, w_neg)) + x_neg * (
        layer.adjoint(s_pos, w_neg) + layer.adjoint(s_neg, w_pos)
    )
    if rule in SHIFTED:
        return leave_shifted(contribution, sample_sum(incoming), scale, dtype)
    absorbed = not_handed_on(incoming, s_pos * z_pos + s_neg * z_neg)
    return leave(contribution, sample_sum(absorbed), scale, dtype)


def relprop_linear(
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    rule: str = "rap",
    nonnegative: bool = False,  # noqa: ARG001
    bias: Tensor | None = None,
    parameters: Sequence[float] = (),
    z: Tensor | None = None,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
) -> Relprop:
    """Propagate relevance through ``x weight^T``: RAP (Eqs. 7-9 of the RAP paper) or an LRP rule.

    With the messages ``m_ij = x_i w_ij``, their positive sum ``Z+_j`` and the magnitude ``Z-_j`` of
    their negative sum, the contributions of rule "rap" are (Eq. 7)

        C_i = sum_j m+_ij R_j / Z+_j  +  sum_j |m-_ij| R_j / (Z+_j + Z-_j)

    and rule "rap_conv" sends negative relevance through the negative messages alone, as the
    authors' code does in convolutions:

        C_i = sum_j m+_ij max(R_j, 0) / Z+_j
              + sum_j |m-_ij| (min(R_j, 0) / Z-_j + R_j / (Z+_j + Z-_j)).

    The uniform shift (Eqs. 8-9) ``psi = (sum C - sum R) / #[C != 0]`` of each sample is left
    pending, over all dimensions but the first. The bias of the layer plays no part.

    The other rules do not shift. Rule "absolute" is RAP's first step (Eq. 6) for relevance at
    several outputs, again without bias: ``C_i = sum_j |m_ij| R_j / (Z+_j + Z-_j)``. The LRP rules
    are those of the library zennit, whose treatment of bias and stabilizer was found by running it
    (tests/test_lrp_rules.py compares). With ``b+``, ``b-`` the signed parts of the bias and
    ``stab(z) = z + s sign(z)``, ``sign(0) = 1``, for the stabilizer ``s``:

    - "epsilon", parameters ``(s,)``: ``C_i = sum_j m_ij R_j / stab(Z+_j - Z-_j + b_j)``. 0 for
      ``s`` is LRP-0, its division guarded.
    - "gamma", parameters ``(gamma, s)``: an output with ``Z+_j - Z-_j + b_j > 0`` shares in
      proportion to ``m_ij + gamma m+_ij`` over ``stab((1 + gamma) Z+_j - Z-_j + b_j + gamma
      b+_j)``, one below 0 in proportion to ``m_ij + gamma m-_ij`` over ``stab(Z+_j - (1 + gamma)
      Z-_j + b_j + gamma b-_j)``; an output of exactly 0 hands nothing on.
    - "alpha_beta", parameters ``(alpha, beta, s)``: ``C_i = alpha sum_j m+_ij R_j / stab(Z+_j +
      b+_j) - beta sum_j |m-_ij| R_j / stab(Z-_j + |b-_j|)``. ``alpha - beta = 1`` is not asked for
      here; (1, 0, s) is the z+ rule.

    The rules "w2" and "flat" are "epsilon" with ones in the place of ``x`` and ``w^2`` or ones in
    that of the weight; zennit's bias is then ``b^2`` or none.

    Args:
        x: ``(N, *, I)``, the layer's input, float64, float32, bfloat16 or float16.
        weight: ``(O, I)``, in the dtype of ``x``.
        relevance: ``(T N, *, O)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, that of target t and sample n at ``t N + n``.
        psi: ``(T N,)`` float64, its pending shift, or None for 0.
        scale: ``(T N,)`` float64, its pending scale, or None for 1.
        rule: "rap", "rap_conv", "absolute", "epsilon", "gamma" or "alpha_beta".
        nonnegative: the caller's promise that no entry of ``x`` is negative, which saves work.
        bias: ``(O,)``, in the dtype of ``x``, or None for 0.
        parameters: those of the rule, finite and at least 0.
        z: ``(N, *, O)``, ``x weight^T`` without bias, in the dtype of ``x``, where it is at hand
            already, or None.
        positive: ``(N, *, O)``, ``Z+`` as :func:`linear_split` returns it, where it is at hand
            already, or None.
        negative: likewise ``Z-``; both or none.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T N, *, I)``, the rest ``(T N,)`` float64.
        ``absorbed`` is, for "rap" and "rap_conv", the relevance of a sample in which no message was
        met, else 0; for the others what bias and stabilizer took and what met no message,
        ``sum_j R_j - S+_j Z+_j - S-_j Z-_j`` (``S`` is what a unit of message receives).

    Raises:
        RuntimeError: a shape, dtype, rule or parameter does not fit.
    """
    op = "relprop_linear"
    check_linear(op, x, weight, relevance)
    check_pending(op, psi, scale, relevance)
    for name, sums in (("z", z), ("positive", positive), ("negative", negative)):
        if sums is not None:
            check_like(op, name, sums, "x", x)
            check_shape(op, name, sums, [x.shape[0], *relevance.shape[1:]])
    require(
        (positive is None) == (negative is None),
        f"{op}: positive and negative must be given together, got "
        f"{'negative' if positive is None else 'positive'} alone",
    )
    check_rule(op, rule, parameters, bias, weight)
    return _propagate(LinearMap(), x, weight, relevance, psi, scale, rule, bias, parameters)


def linear_split(
    x: Tensor,
    weight: Tensor,
    nonnegative: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """The sums ``Z+`` and ``Z-`` of :func:`relprop_linear`.

    For each output of ``x weight^T`` the sum of its positive messages, and the magnitude of that of
    the negative ones (Eq. 7); their difference is the output.

    Args:
        x: ``(N, *, I)``, the layer's input, float64, float32, bfloat16 or float16.
        weight: ``(O, I)``, in the dtype of ``x``.
        nonnegative: the caller's promise that no entry of ``x`` is negative, which saves work.

    Returns:
        ``(positive, negative)``, each ``(N, *, O)`` in the dtype of ``x`` (its largest number where
        they overflow; the native kernels may return 0 for the other sum of such an output).

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    check_linear("linear_split", x, weight)
    z_pos, z_neg = _split_sums(LinearMap(), accumulate(x), accumulate(weight))
    return saturate(z_pos, x.dtype), saturate(z_neg, x.dtype)


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
    bias: Tensor | None = None,
    parameters: Sequence[float] = (),
    precision: str = "fp32",
) -> Relprop:
    """Propagate relevance through a 1-d, 2-d or 3-d convolution: RAP (Eqs. 7-9) or an LRP rule.

    The equations are those of :func:`relprop_linear`; "rap_conv" is the published code's rule for
    convolutions, "rap" the paper's Eq. 7. Both are the same where the relevance is not negative.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        weight: ``(O, C / groups, *kernel)``, in the dtype of ``x``.
        z: the convolution of ``x`` without bias, in the dtype of ``x``, where it is at hand
            already, or None.
        relevance: ``(T N, O, *output)``, values of the incoming state, in the dtype of ``x``: T
            relevances of each sample, that of target t and sample n at ``t N + n``.
        psi: ``(T N,)`` float64, its pending shift, or None for 0.
        scale: ``(T N,)`` float64, its pending scale, or None for 1.
        stride: one int, or one per spatial dimension.
        padding: one int, or (low, high) for each spatial dimension, the first dimension first.
        dilation: one int, or one per spatial dimension.
        groups: the number of blocked connections from input to output channels.
        rule: "rap_conv", "rap", "absolute", "epsilon", "gamma" or "alpha_beta".
        nonnegative: the caller's promise that no entry of ``x`` is negative, which saves work.
        bias: ``(O,)``, in the dtype of ``x``, or None for 0.
        parameters: those of the rule, finite and at least 0.
        precision: "bf16" lets the native kernels round S+, S- and the weight to bfloat16, and of
            inputs that are not negative ``x`` and ``Z-`` too, with float32 sums, where they have
            that: float32 on a processor with AVX512-BF16, 2-d convolutions without groups of 16
            channels and more. Here it changes nothing.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T N, C, *size)``, the rest ``(T N,)`` float64;
        ``absorbed`` as :func:`relprop_linear` has it.

    Raises:
        RuntimeError: a shape, dtype, rule, parameter or length does not fit.
    """
    op = "relprop_conv"
    layer = conv_map(op, x, weight, relevance, stride, padding, dilation, groups)
    check_pending(op, psi, scale, relevance)
    if z is not None:
        check_like(op, "z", z, "x", x)
        check_shape(op, "z", z, [x.shape[0], *relevance.shape[1:]])
    check_rule(op, rule, parameters, bias, weight)
    check_choice(op, precision, PRECISIONS, "precision")
    return _propagate(layer, x, weight, relevance, psi, scale, rule, bias, parameters)


def split_quotient(
    z: Tensor, a: Tensor, relevance: Tensor, psi: Tensor | None = None, rule: str = "rap"
) -> tuple[Tensor, Tensor, Tensor]:
    """The quotient of Eq. 7 from ``z = w * x`` and ``a = |w| * |x|``, without the split sums.

    ``Z+ = (a + z) / 2`` and ``Z- = (a - z) / 2``; what is not above ``8 eps a`` is rounding and
    counts as 0.

    Args:
        z: ``(N, ...)``, float64, float32, bfloat16 or float16.
        a: like ``z``.
        relevance: ``(T N, ...)``, else like ``z``, values of the incoming state: T of each sample,
            that of target t and sample n at ``t N + n``.
        psi: ``(T N,)`` float64, its pending shift, or None for 0.
        rule: "rap" or "rap_conv".

    Returns:
        ``(S+, S-, total)``: the quotients shaped like ``relevance`` in the dtype of ``z`` (its
        largest number where they overflow), and the sum of the shifted relevance, ``(T N,)``
        float64.

    Raises:
        RuntimeError: a shape, dtype or rule does not fit.
    """
    op = "split_quotient"
    check_samples(op, "z", z)
    check_like(op, "a", a, "z", z)
    check_like(op, "relevance", relevance, "z", z)
    check_shape(op, "a", a, z.shape)
    check_targets(op, "relevance", relevance, "z", z, z.shape[1:])
    check_per_sample(op, "psi", psi, relevance)
    check_choice(op, rule, SHIFTED)
    incoming = read(relevance, psi)
    z, a = accumulate(z), accumulate(a)
    rounding = 8 * torch.finfo(z.dtype).eps * a
    zero = torch.zeros_like(z)
    positive, negative = (a + z) / 2, (a - z) / 2
    s_pos, s_neg = rap_quotients(
        incoming,
        for_each_target(torch.where(positive > rounding, positive, zero), relevance),
        for_each_target(torch.where(negative > rounding, negative, zero), relevance),
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
        gradient: ``(T N, ...)``, else like ``x``: T of each sample, that of target t and sample n
            at ``t N + n``.
        total: ``(T N,)`` float64, the sum that each sample is shifted to, or None for no shift.
        scale: ``(T N,)`` float64, the pending scale of ``gradient`` and ``total``, or None for 1.

    Returns:
        ``(values, psi, scale)`` of the state: values shaped like ``gradient``, the rest ``(T N,)``
        float64.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "gate"
    check_samples(op, "x", x)
    check_like(op, "gradient", gradient, "x", x)
    check_targets(op, "gradient", gradient, "x", x, x.shape[1:])
    check_per_sample(op, "total", total, gradient)
    check_per_sample(op, "scale", scale, gradient)
    contribution = for_each_target(accumulate(x), gradient) * accumulate(gradient)
    target = sample_sum(contribution) if total is None else total
    values, psi, scale, _ = leave_shifted(contribution, target, scale, x.dtype)
    return values, torch.zeros_like(psi) if total is None else psi, scale
