"""What methods share whose relevance starts at a layer: its path, the gradient there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rapkernels import calls
from rapkernels.errors import ArgumentTypeError
from rapkernels.walker import Walk


def check_layer(layer: Any) -> None:
    """Raise ArgumentTypeError unless a layer is None or a string."""
    if layer is not None and not isinstance(layer, str):
        raise ArgumentTypeError(f"layer must be a module path or None, got {type(layer).__name__}")


def gradients(walk: Walk, output: Tensor, target: Tensor) -> Iterator[Tensor]:
    """Gradients of each target's logit with respect to the value where relevance starts.

    Args:
        walk: a walk that has run forward.
        output: ``(N, ...)``, what it returned.
        target: ``(T, N)`` int64, flat indices into the outputs.

    Yields:
        Tensors like the value.
    """
    with torch.enable_grad():
        scores = calls.scores_of(output, target).sum(1).unbind()
    for score in scores:
        yield walk.gradient(score)
