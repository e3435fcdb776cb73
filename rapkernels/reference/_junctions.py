"""Where branches meet: the residual add, the sum of two relevances, the pending shift applied."""

from __future__ import annotations

import torch
from torch import Tensor

from rapkernels.reference._checks import (
    SHARES,
    check_choice,
    check_like,
    check_pending,
    check_per_sample,
    check_samples,
    check_shape,
    check_stabilizer,
    check_targets,
)
from rapkernels.reference._shares import share, stabilized
from rapkernels.reference._state import (
    Relprop,
    accumulate,
    carries_message,
    divide,
    finite,
    read,
    safe_factor,
    sample_sum,
    scale_of,
    store,
)
from rapkernels.reference._targets import for_each_target
from rapkernels.relevance import Relevance


def relprop_add(
    a: Tensor,
    b: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    rule: str = "absolute",
    stabilizer: float = 0.0,
) -> Relprop:
    """Share the relevance of ``a + b`` between its terms.

    Rule "absolute" shares by ``|a| / (|a| + |b|)``: bounded, and it conserves. Rule "ratio" shares
    by ``a / (a + b)`` and ``b / (a + b)``, as the RAP authors' code does; unbounded where the
    terms cancel. Rule "positive" shares by ``p(a) / (p(a) + p(b))``, ``p(a) = max(a, 0) + 1e-9``,
    the weights of the Attribution Equilibrium authors' pools. ``stabilizer`` is added to the
    denominator, with its sign (+ for 0).

    Args:
        a: ``(N, ...)``, float64, float32, bfloat16 or float16.
        b: like ``a``.
        relevance: ``(T * N, ...)``, values of the incoming state, in the dtype of ``a``: T
            relevances of each sample, all samples of the first target first.
        psi: ``(T * N,)`` float64, its pending shift, or None for 0.
        scale: ``(T * N,)`` float64, its pending scale, or None for 1.
        rule: "absolute", "ratio" or "positive".
        stabilizer: what the denominators are kept away from 0 by, at least 0.

    Returns:
        ``(values_a, values_b, scale, absorbed)``: values shaped like ``relevance``, the rest
        ``(T * N,)`` float64. No shift is pending; ``absorbed`` is the relevance where the
        denominator is 0, and what the stabilizer took.

    Raises:
        RuntimeError: a shape, dtype, rule or stabilizer does not fit.
    """
    op = "relprop_add"
    check_samples(op, "a", a)
    check_like(op, "b", b, "a", a)
    check_like(op, "relevance", relevance, "a", a)
    check_shape(op, "b", b, a.shape)
    check_targets(op, "relevance", relevance, "a", a, a.shape[1:])
    check_pending(op, psi, scale, relevance)
    check_choice(op, rule, SHARES)
    check_stabilizer(op, stabilizer)
    incoming = read(relevance, psi)
    first = for_each_target(share(accumulate(a), rule), relevance)
    second = for_each_target(share(accumulate(b), rule), relevance)
    whole, added = stabilized(first + second, stabilizer)
    met = carries_message(whole)
    share_a = finite(incoming * divide(first, whole, met))
    share_b = finite(incoming * divide(second, whole, met))
    taken = finite(incoming * divide(added, whole, met))
    absorbed = sample_sum(torch.where(met, taken, incoming))
    scale = scale_of(scale, relevance)
    factor = safe_factor(a.dtype, share_a, share_b)
    values_a, values_b = store(share_a, factor, a.dtype), store(share_b, factor, a.dtype)
    return values_a, values_b, scale / factor, absorbed * scale


def merge(
    values_a: Tensor,
    psi_a: Tensor | None,
    scale_a: Tensor | None,
    values_b: Tensor,
    psi_b: Tensor | None = None,
    scale_b: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the true relevances of two states, where branches meet.

    Args:
        values_a: ``(N, ...)``, float64, float32, bfloat16 or float16.
        psi_a: ``(N,)`` float64, its pending shift, or None for 0.
        scale_a: ``(N,)`` float64, its pending scale, or None for 1.
        values_b: like ``values_a``.
        psi_b: like ``psi_a``.
        scale_b: like ``scale_a``.

    Returns:
        ``(values, scale)`` of the sum: values like ``values_a``, scale ``(N,)`` float64. No shift
        is pending.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "merge"
    check_samples(op, "values_a", values_a)
    check_like(op, "values_b", values_b, "values_a", values_a)
    check_shape(op, "values_b", values_b, values_a.shape)
    check_per_sample(op, "psi_a", psi_a, values_a)
    check_per_sample(op, "scale_a", scale_a, values_a)
    check_per_sample(op, "psi_b", psi_b, values_a)
    check_per_sample(op, "scale_b", scale_b, values_a)
    scale_a, scale_b = scale_of(scale_a, values_a), scale_of(scale_b, values_a)
    scale = torch.maximum(scale_a, scale_b)
    total = torch.zeros_like(values_a, dtype=torch.float64)
    for values, psi, own in ((values_a, psi_a, scale_a), (values_b, psi_b, scale_b)):
        total = total + Relevance(values, psi, own / scale).to_float64()
    total = finite(total)
    factor = safe_factor(values_a.dtype, total)
    return store(total, factor, values_a.dtype), scale / factor


def apply_shift(values: Tensor, psi: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """Return the true relevance of a state: its uniform shift (Eq. 9) and its scale applied.

    Args:
        values: ``(N, ...)``, float64, float32, bfloat16 or float16.
        psi: ``(N,)`` float64, its pending shift, or None for 0.
        scale: ``(N,)`` float64, its pending scale, or None for 1.

    Returns:
        A tensor like ``values``; what overflows its dtype is the largest finite number.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    op = "apply_shift"
    check_samples(op, "values", values)
    check_pending(op, psi, scale, values)
    return Relevance(values, psi, scale).materialise()
