"""Many targets: T relevances of each of N samples travel as T N samples.

Sample ``t N + n`` of the relevance is that of target ``t`` at sample ``n``.
"""

from __future__ import annotations

from torch import Tensor


def has_targets(x: Tensor, relevance: Tensor) -> bool:
    """Whether the samples of ``relevance`` are those of ``x`` once or several times."""
    samples, asked = x.shape[0], relevance.shape[0]
    return asked == samples or (0 < samples <= asked and asked % samples == 0)


def for_each_target(tensor: Tensor, relevance: Tensor) -> Tensor:
    """``tensor`` of N samples, repeated for each target: ``(T N, ...)``."""
    samples, asked = tensor.shape[0], relevance.shape[0]
    if samples == asked:
        return tensor
    return tensor.repeat(asked // samples, *[1] * (tensor.dim() - 1))
