"""Attribution Equilibrium in linear and convolution layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rapkernels.reference._checks import check_linear, check_pending, require
from rapkernels.reference._convolution import ConvMap, LinearMap, conv_map
from rapkernels.reference._state import (
    Relprop,
    accumulate,
    carries_message,
    divide,
    finite,
    leave,
    read,
    sample_sum,
    scale_of,
)
from rapkernels.relevance import sample_view


def _normalised(part: Tensor) -> Tensor:
    """Relevance of one sign over the magnitude of its sum, per sample; 0 where there is none."""
    total = sample_sum(part).abs()
    inverse = divide(torch.ones_like(total), total, carries_message(total))
    return (part.to(torch.float64) * sample_view(inverse, part)).to(part.dtype)


def _shifted(contribution: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """``total`` of each sample taken off its non-zero entries, uniformly; and what was taken."""
    active = contribution != 0
    count = sample_sum(active)
    met = count > 0
    psi = divide(total, count, met).to(contribution.dtype)
    taken = torch.where(met, total, torch.zeros_like(total))
    return contribution - sample_view(psi, contribution) * active, taken


def _equilibrium(
    layer: LinearMap | ConvMap,
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    ratio: float | None,
) -> Relprop:
    """The hedged rule with its shift, or the balanced one for a ``ratio`` of None."""
    magnitude = accumulate(weight).abs()
    incoming = read(relevance, psi)
    positive, negative = incoming.clamp(min=0), incoming.clamp(max=0)
    p, n = _normalised(positive), _normalised(negative)
    copies = [relevance.shape[0] // max(1, x.shape[0])] + [1] * (x.dim() - 1)

    def spread(neurons: Tensor, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """``neurons T(evidence / C(neurons))``, and the sum of the evidence that was met."""
        messages = layer.forward(neurons, magnitude).repeat(copies)
        met = carries_message(messages)
        received = layer.adjoint(divide(evidence, messages, met), magnitude)
        kept = torch.where(met, evidence, torch.zeros_like(evidence))
        return finite(neurons.repeat(copies) * received), sample_sum(kept)

    on, off = (x > 0).to(incoming.dtype), (x <= 0).to(incoming.dtype)
    hedge = 1.0 if ratio is None else ratio
    hedged, expected = spread(accumulate(x).clamp(min=0), finite(hedge * p + n))
    if ratio is not None:
        supported = carries_message(sample_sum(positive)).to(torch.float64)
        hedged, taken = _shifted(hedged, supported)
        expected = expected - taken
    supporting, of_supporting = spread(on, p)
    opposing, of_opposing = spread(off, n)
    expected = expected + of_supporting + of_opposing
    absorbed = sample_sum(incoming) * scale_of(scale, incoming) - expected
    return leave(hedged + supporting + opposing, absorbed, None, x.dtype)


def relprop_equilibrium_linear(
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
) -> Relprop:
    """Propagate relevance through ``x weight^T`` by Attribution Equilibrium (arXiv 2205.11109 v2).

    The rule is that of a 1x1 convolution, without a ratio and without a shift. With ``P`` and ``N``
    the positive and the negative relevance of the sample, each divided by the magnitude of its sum
    (so they sum to 1 and -1), and with the masks ``on = [x > 0]`` and ``off = [x <= 0]``,

        R_i = sum_j max(x_i, 0) |w_ij| (P_j + N_j) / sum_k max(x_k, 0) |w_kj|
              + sum_j on_i |w_ij| P_j / sum_k on_k |w_kj|
              + sum_j off_i |w_ij| N_j / sum_k off_k |w_kj|.

    Messages whose denominator is 0 are dropped. The result depends on the shape of the positive and
    of the negative relevance alone, not on their size; without dropped messages it sums to 0. The
    bias of the layer plays no part.

    The source is the code that the authors published: the body of the paper was not available.
    That a linear layer takes their rule of 1x1 convolutions is inferred: their code propagates
    through none. Departures from the code: sums are taken over each sample, where theirs run over
    the batch; and where a sample has no positive (no negative) relevance ``P`` (``N``) is 0, where
    theirs divides 0 by 0.

    Args:
        x: ``(N, *, I)``, the layer's input, float64, float32, bfloat16 or float16.
        weight: ``(O, I)``, in the dtype of ``x``.
        relevance: ``(T*N, *, O)``, values of the incoming state for T targets of each sample, the
            first target of all samples first, in the dtype of ``x``.
        psi: ``(T*N,)`` float64, its pending shift, or None for 0.
        scale: ``(T*N,)`` float64, its pending scale, or None for 1.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T*N, *, I)``, the rest ``(T*N,)`` float64.
        ``psi`` is 0. ``absorbed`` is the incoming sum less what the rule sums to, given the
        messages that it drops.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "relprop_equilibrium_linear"
    check_linear(op, x, weight, relevance)
    check_pending(op, psi, scale, relevance)
    return _equilibrium(LinearMap(), x, weight, relevance, psi, scale, ratio=None)


def relprop_equilibrium_conv(
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    ratio: float = 2.0,
) -> Relprop:
    """Propagate relevance through a convolution by Attribution Equilibrium (arXiv 2205.11109 v2).

    Write ``C`` for the convolution by ``|weight|``, ``T`` for its transpose, ``P`` and ``N`` for
    the positive and the negative relevance of the sample, each divided by the magnitude of its sum
    (so they sum to 1 and -1), ``on = [x > 0]``, ``off = [x <= 0]`` (the padding is neither). Then

        H = max(x, 0) T((ratio P + N) / C(max(x, 0)))       through active neurons, hedged
        S = H - [H != 0] / #[H != 0]                         the uniform shift ("suppression")
        R = S + on T(P / C(on)) + off T(N / C(off)).         the last two whatever the activations

    Messages whose denominator is 0 are dropped. A kernel of a single position (all its sizes are 1)
    takes the balanced rule of :func:`relprop_equilibrium_linear`: ratio 1 and no shift. The result
    depends on the shape of the positive and of the negative relevance alone, not on their size;
    without dropped messages it sums to ``ratio - 2``, or to 0 for a single position. The bias of
    the layer plays no part.

    The source is the code that the authors published: the body of the paper was not available.
    Departures from it: sums are taken over each sample, where theirs run over the batch; where a
    sample has no positive (no negative) relevance ``P`` (``N``) is 0, where theirs divides 0 by 0,
    and without positive relevance there is no shift, since theirs is by the sum of ``P``; and a
    single position means that all sizes of the kernel are 1, where theirs looks at its height.

    Args:
        x: ``(N, C, *size)`` with 1, 2 or 3 spatial dimensions, float64, float32, bfloat16, float16.
        weight: ``(O, C / groups, *kernel)``, in the dtype of ``x``.
        relevance: ``(T*N, O, *output)``, values of the incoming state for T targets of each sample,
            the first target of all samples first, in the dtype of ``x``.
        psi: ``(T*N,)`` float64, its pending shift, or None for 0.
        scale: ``(T*N,)`` float64, its pending scale, or None for 1.
        stride: one int, or one per spatial dimension.
        padding: one int, or (low, high) for each spatial dimension, the first dimension first.
        dilation: one int, or one per spatial dimension.
        groups: the number of blocked connections from input to output channels.
        ratio: of positive to negative evidence in active neurons, any finite number; the authors
            use 1 to 2, and more makes more of the map positive.

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T*N, C, *size)``, the rest ``(T*N,)`` float64.
        ``psi`` is 0. ``absorbed`` is the incoming sum less what the rule sums to, given the
        messages that it drops.

    Raises:
        RuntimeError: a shape or dtype does not fit, or the ratio is not finite.
    """
    op = "relprop_equilibrium_conv"
    layer = conv_map(op, x, weight, relevance, stride, padding, dilation, groups)
    check_pending(op, psi, scale, relevance)
    require(math.isfinite(ratio), f"{op}: ratio must be finite, got {ratio}")
    pointwise = all(size == 1 for size in weight.shape[2:])
    return _equilibrium(layer, x, weight, relevance, psi, scale, ratio=None if pointwise else ratio)
