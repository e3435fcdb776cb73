"""How the terms of a sum share its relevance: residual adds and average pools."""

from __future__ import annotations

import torch
from torch import Tensor

# What keeps a zero term from having no share by "positive"; the value of the published code.
POSITIVE_SHARE = 1e-9


def share(value: Tensor, rule: str) -> Tensor:
    """The weight of each term."""
    if rule == "absolute":
        return value.abs()
    return value.clamp(min=0) + POSITIVE_SHARE if rule == "positive" else value


def stabilized(whole: Tensor, stabilizer: Tensor | float) -> tuple[Tensor, Tensor]:
    """The sum of the weights moved away from 0, and by how much."""
    added = torch.zeros_like(whole) + stabilizer
    added = torch.where(whole < 0, -added, added)
    return whole + added, added
