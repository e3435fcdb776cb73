"""What only the RAP authors' published code does, quirks included (``variant="author"``)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rapkernels import host, reference
from rapkernels.relevance import Relevance

Relprop = tuple[Tensor, Tensor, Tensor, Tensor]
Merge = Callable[
    [Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None],
    tuple[Tensor, Tensor],
]


def relprop_signed_author(
    propagate: Callable[[Tensor], Relprop], x: Tensor, merge: Merge = reference.merge
) -> Relprop:
    """Propagate through a linear or convolution layer with inputs of both signs as the authors do.

    The messages of the positive and of the negative inputs are signed by the weight alone and each
    half is shifted to the full sum of the incoming relevance: a sample with inputs of both signs
    comes out with twice its relevance.

    Args:
        propagate: takes an input shaped like ``x`` without negative entries and returns what
            ``relprop_linear`` or ``relprop_conv`` returns for it (``z`` must be None there).
        x: ``(N, ...)``, the layer's input.
        merge: ``merge`` of the backend in use.

    Returns:
        ``(values, psi, scale, absorbed)`` as from ``propagate``; ``absorbed`` is the relevance of a
        sample in which neither half met a message, else 0.
    """
    positive = propagate(x.clamp(min=0))
    # A half without messages adds nothing: this saves time, where it costs none to look.
    if host.at_hand(x) and not bool((x < 0).any()):
        return positive
    negative = propagate((-x).clamp(min=0))
    values, scale = merge(*positive[:3], *negative[:3])
    unmet = (positive[3] != 0) & (negative[3] != 0)
    absorbed = torch.where(unmet, positive[3], torch.zeros_like(positive[3]))
    return values, torch.zeros_like(scale), scale, absorbed


def relprop_batchnorm_author(x: Tensor, gamma: Tensor | None, relevance: Relevance) -> Relprop:
    """Propagate through a BatchNorm as the authors do: unchanged, but 0 where ``x gamma`` is 0.

    Args:
        x: ``(N, C, ...)``, the input of the BatchNorm.
        gamma: ``(C,)``, its weight, or None for 1.
        relevance: the incoming state, shaped like ``x``.

    Returns:
        ``(values, psi, scale, absorbed)``: the state without the dropped entries, and what they
        held, ``(N,)`` float64.
    """
    signal = x if gamma is None else x * gamma.view(-1, *[1] * (x.dim() - 2))
    kept = torch.where(signal != 0, relevance.values, torch.zeros_like(relevance.values))
    ones = torch.ones(x.shape[0], dtype=torch.float64, device=x.device)
    psi = torch.zeros_like(ones) if relevance.psi is None else relevance.psi
    scale = ones if relevance.scale is None else relevance.scale
    absorbed = relevance.total() - Relevance(kept, psi, scale).total()
    return kept, psi, scale, absorbed
