"""The state in which relevance travels between layers: values, a pending shift and scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def sample_view(per_sample: Tensor, like: Tensor) -> Tensor:
    """View a ``(N,)`` tensor as ``(N, 1, ..., 1)``, to broadcast over the samples of ``like``."""
    return per_sample.view(-1, *[1] * (like.dim() - 1))


def saturate(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to ``dtype``; what overflows becomes its largest finite number."""
    limit = torch.finfo(dtype)
    return tensor.clamp(limit.min, limit.max).to(dtype)


class Relevance(NamedTuple):
    """Relevance of one tensor of the network, before its pending shift and scale are applied.

    The true relevance is ``(values - psi[n] * (values != 0)) * scale[n]``: the uniform shift of the
    RAP paper (Eqs. 8-9) needs a sum over the whole sample before it can be applied, so the next
    operation applies it while it loads ``values``.

    Attributes:
        values: ``(N, ...)``, float64, float32, bfloat16 or float16.
        psi: ``(N,)`` float64, the pending uniform shift; None means 0.
        scale: ``(N,)`` float64, a positive power of two; None means 1.
    """

    values: Tensor
    psi: Tensor | None = None
    scale: Tensor | None = None

    def split(self, parts: int) -> list[Relevance]:
        """The states of equally many consecutive samples each."""
        psi, scale = (
            [None] * parts if part is None else torch.chunk(part, parts)
            for part in (self.psi, self.scale)
        )
        return [
            Relevance(*state)
            for state in zip(torch.chunk(self.values, parts), psi, scale, strict=True)
        ]

    @classmethod
    def cat(cls, states: Sequence[Relevance]) -> Relevance:
        """One state of the samples of several."""

        def per_sample(values: list[Tensor | None], default: float) -> Tensor | None:
            if all(value is None for value in values):
                return None
            filled = (
                state.values.new_full(state.values.shape[:1], default, dtype=torch.float64)
                if value is None
                else value
                for state, value in zip(states, values, strict=True)
            )
            return torch.cat(list(filled))

        return cls(
            torch.cat([state.values for state in states]),
            per_sample([state.psi for state in states], 0.0),
            per_sample([state.scale for state in states], 1.0),
        )

    def to_float64(self) -> Tensor:
        """Return the true relevance in float64, shaped like ``values``."""
        true = self.values.to(torch.float64)
        if self.psi is not None:
            true = true - sample_view(self.psi, true) * (self.values != 0)
        if self.scale is not None:
            true = true * sample_view(self.scale, true)
        return true

    def materialise(self) -> Tensor:
        """Return the true relevance in the dtype of ``values``; what overflows saturates."""
        return saturate(self.to_float64(), self.values.dtype)

    def total(self) -> Tensor:
        """Return the sum of the true relevance per sample: ``(N,)`` float64."""
        return self.to_float64().flatten(1).sum(1)

    def magnitude(self) -> Tensor:
        """Return the sum of the absolute true relevance per sample: ``(N,)`` float64."""
        return self.to_float64().abs().flatten(1).sum(1)
