"""The scalar rules of the contribution algebra: what an output's relevance becomes per message.

A rule takes the relevance ``R`` of an output, the sum ``Z+`` of its positive messages and the
magnitude ``Z-`` of the sum of its negative ones (and its bias) to ``(S+, S-)``: a message ``m``
then carries ``S+ m`` or ``S- |m|``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rapkernels.reference._checks import check_like, check_shape, require
from rapkernels.reference._state import carries_message, divide

# Rules whose contributions are shifted uniformly to the total.
SHIFTED = ("rap", "rap_conv")
PRECISIONS = ("fp32", "bf16")

# Every rule of a layer, with the names of its parameters.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "rap": (),
    "rap_conv": (),
    "absolute": (),
    "epsilon": ("epsilon",),
    "gamma": ("gamma", "stabilizer"),
    "alpha_beta": ("alpha", "beta", "stabilizer"),
}


def check_rule(
    op: str, rule: str, parameters: Sequence[float], bias: Tensor | None, weight: Tensor
) -> None:
    """Raise unless the rule is one, with its parameters, and the bias fits the weight."""
    *names, last = (f"'{name}'" for name in PARAMETERS)
    require(rule in PARAMETERS, f"{op}: rule must be {', '.join(names)} or {last}, got '{rule}'")
    wanted = PARAMETERS[rule]
    require(
        len(parameters) == len(wanted),
        f"{op}: parameters must be ({', '.join(wanted)}) for rule '{rule}', got "
        f"{len(parameters)} entries",
    )
    for name, value in zip(wanted, parameters, strict=True):
        require(
            0 <= value < math.inf,
            f"{op}: parameters must be finite and at least 0, got {value:g} for {name}",
        )
    if bias is not None:
        check_like(op, "bias", bias, "x", weight)
        check_shape(op, "bias", bias, [weight.shape[0]])


def stabilized_quotient(relevance: Tensor, whole: Tensor, stabilizer: float) -> Tensor:
    """``R / stab(Z)`` for ``stab(z) = z + stabilizer sign(z)``, ``sign(0) = 1``; 0 for no ``Z``."""
    ones = torch.ones_like(whole)
    denominator = whole + stabilizer * torch.where(whole < 0, -ones, ones)
    return divide(relevance, denominator, carries_message(denominator))


def not_handed_on(relevance: Tensor, handed_on: Tensor) -> Tensor:
    """What of each output's relevance its messages do not carry; all of it where they overflow."""
    left = relevance - handed_on
    return torch.where(torch.isfinite(left), left, relevance)


def rap_quotients(
    relevance: Tensor, positive: Tensor, negative: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """RAP's rules: Eq. 7, or the published rule of convolutions."""
    meets_positive, meets_negative = carries_message(positive), carries_message(negative)
    both = positive + negative
    shared = divide(relevance, both, meets_negative & carries_message(both))
    if rule == "rap":
        return divide(relevance, positive, meets_positive), shared
    return (
        divide(relevance.clamp(min=0), positive, meets_positive),
        divide(relevance.clamp(max=0), negative, meets_negative) + shared,
    )


def _gamma_quotients(
    relevance: Tensor,
    positive: Tensor,
    negative: Tensor,
    bias: Tensor,
    gamma: float,
    stabilizer: float,
) -> tuple[Tensor, Tensor]:
    whole = positive - negative + bias
    # The messages and the bias of the output's sign are favoured; an output of 0 has no sign.
    above = positive * (1 + gamma) - negative + bias + gamma * bias.clamp(min=0)
    below = positive - negative * (1 + gamma) + bias + gamma * bias.clamp(max=0)
    nothing = torch.zeros_like(relevance)
    up = stabilized_quotient(torch.where(whole > 0, relevance, nothing), above, stabilizer)
    down = stabilized_quotient(torch.where(whole < 0, relevance, nothing), below, stabilizer)
    return (1 + gamma) * up + down, -up - (1 + gamma) * down


def quotients(
    relevance: Tensor,
    positive: Tensor,
    negative: Tensor,
    bias: Tensor,
    rule: str,
    parameters: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """``(S+, S-)`` of each output by any of the rules."""
    if rule in SHIFTED:
        return rap_quotients(relevance, positive, negative, rule)
    if rule == "absolute":
        share = stabilized_quotient(relevance, positive + negative, 0.0)
        return share, share
    if rule == "epsilon":
        share = stabilized_quotient(relevance, positive - negative + bias, *parameters)
        return share, -share
    if rule == "gamma":
        return _gamma_quotients(relevance, positive, negative, bias, *parameters)
    alpha, beta, stabilizer = parameters
    supporting = stabilized_quotient(relevance, positive + bias.clamp(min=0), stabilizer)
    opposing = stabilized_quotient(relevance, negative - bias.clamp(max=0), stabilizer)
    return alpha * supporting, -beta * opposing
