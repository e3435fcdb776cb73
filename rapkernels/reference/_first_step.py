"""The first propagation, from the logit to the input of the last linear layer (Eqs. 5-6)."""

from __future__ import annotations

import torch
from torch import Tensor

from rapkernels.reference._checks import (
    FIRST_RULES,
    check_choice,
    check_dim,
    check_dtype,
    check_like,
    check_range,
    check_shape,
    check_storage,
    check_targets,
    require,
)
from rapkernels.reference._state import Relprop, accumulate, carries_message, divide, leave
from rapkernels.reference._targets import for_each_target


def _author_influence(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Eq. 5 with the bias as in the authors' code: on the messages of the positive inputs."""
    messages = x * weight
    supporting, opposing = messages.clamp(min=0).sum(1), messages.clamp(max=0).sum(1)
    logit = supporting + opposing
    rate = divide(bias, logit, carries_message(logit))
    influence = messages
    for part, whole in ((weight.clamp(min=0), supporting), (weight.clamp(max=0), opposing)):
        carriers = x.clamp(min=0) * part
        carried = carriers.sum(1)
        share = divide(whole * rate, carried, carries_message(carried))
        influence = influence + carriers * share[:, None]
    return influence


def relprop_first_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    score: Tensor,
    rule: str = "absolute",
) -> Relprop:
    """Start from the logit: absolute influence normalisation in the last linear layer (Eqs. 5-6).

    Rule "absolute" gives ``R_i = score |x_i w_ic| / sum_k |x_k w_kc|`` for the target class ``c``.
    Rule "author" shares the bias out first (Eq. 5), where the authors' code puts it: in proportion
    to the messages of the positive inputs. The two are the same where no input is negative.

    Args:
        x: ``(N, I)``, the layer's input, float64, float32, bfloat16 or float16.
        weight: ``(O, I)``, in the dtype of ``x``.
        bias: ``(O,)``, in the dtype of ``x``, or None.
        target: ``(T N,)`` int64: T classes of each sample, class t of sample n at ``t N + n``.
        score: ``(T N,)``, their logits, in the dtype of ``x``.
        rule: "absolute" or "author".

    Returns:
        ``(values, psi, scale, absorbed)``: values ``(T N, I)``, the rest ``(T N,)`` float64.
        ``psi`` is 0; ``absorbed`` is the score of a sample without any message, else 0.

    Raises:
        RuntimeError: a shape, dtype or rule does not fit, or a target is out of range (checked on
            the CPU alone: elsewhere the host would have to wait for the device).
    """
    op = "relprop_first_linear"
    check_storage(op, "x", x)
    check_dim(op, "x", x, 2, 2)
    check_dim(op, "weight", weight, 2, 2)
    check_like(op, "weight", weight, "x", x)
    require(
        x.shape[1] == weight.shape[1],
        f"{op}: x must have {weight.shape[1]} features, as weight {list(weight.shape)} needs, "
        f"got {list(x.shape)}",
    )
    if bias is not None:
        check_like(op, "bias", bias, "x", x)
        check_shape(op, "bias", bias, [weight.shape[0]])
    check_dtype(op, "target", target, torch.int64)
    check_targets(op, "target", target, "x", x, [])
    require(target.device == x.device, f"{op}: target must be on {x.device}, got {target.device}")
    check_like(op, "score", score, "x", x)
    check_shape(op, "score", score, target.shape)
    check_choice(op, rule, FIRST_RULES)
    check_range(op, "target", target, weight.shape[0])
    inputs = for_each_target(accumulate(x), target)
    chosen, amount = accumulate(weight)[target], accumulate(score)
    if rule == "author" and bias is not None:
        influence = _author_influence(inputs, chosen, accumulate(bias)[target]).abs()
    else:
        influence = (inputs * chosen).abs()
    whole = influence.sum(1)
    met = carries_message(whole)
    share = divide(influence, whole[:, None], met[:, None])
    absorbed = torch.where(met, torch.zeros_like(amount), amount).to(torch.float64)
    return leave(share * amount[:, None], absorbed, None, x.dtype)
