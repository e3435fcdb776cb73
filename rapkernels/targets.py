"""Which output is explained: from what the user gives to one index per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapkernels.errors import ArgumentError, ArgumentTypeError

Target = int | Sequence[int] | Sequence[Sequence[int]] | tuple[int, ...] | Tensor | None

_KINDS = "an int, a list, tuple or tensor with one int per sample, or None for the predicted class"


def resolve_target(target: Target, shape: torch.Size) -> Tensor | None:
    """Turn a target into flat indices into each sample's output.

    Args:
        target: None for the predicted class; an int for all samples; a list, tuple or tensor
            ``(N,)`` of ints, one per sample; for outputs with more than two dimensions one tuple of
            ints (an index without the batch dimension) for all samples or a list of them.
        shape: shape of the model's output, ``(N,)``, ``(N, C)`` or ``(N, ...)``.

    Returns:
        ``(N,)`` int64 on the CPU, or None for the predicted class.

    Raises:
        ArgumentTypeError: the target has none of these forms.
        ArgumentError: it has the wrong length, is out of range, or is None where the output has
            several positions per sample.
    """
    samples, size = shape[0], tuple(shape[1:])
    while len(size) > 1 and size[-1] == 1:
        size = size[:-1]
    if target is None:
        if len(size) > 1:
            raise ArgumentError(
                f"target must be given as an index tuple of {len(size)} ints where the output has "
                f"more than one dimension per sample, got None for an output of shape {list(shape)}"
            )
        return None
    if not size:
        size = (1,)
    if isinstance(target, Tensor | np.ndarray):
        target = _items(target)
    if len(size) > 1:
        return _index_tuples(target, samples, size)
    indices = _per_sample([target] * samples if _is_int(target) else target, samples)
    for index in indices:
        if not 0 <= index < size[0]:
            raise ArgumentError(
                f"target must be at least 0 and below the number of outputs {size[0]}, got {index}"
            )
    return torch.tensor(indices, dtype=torch.int64)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _items(target: Tensor | np.ndarray[Any, Any]) -> Any:
    array = target.detach().cpu().numpy() if isinstance(target, Tensor) else target
    if not np.issubdtype(array.dtype, np.integer):
        raise ArgumentTypeError(f"target must be {_KINDS}, got dtype {array.dtype}")
    return array.tolist()


def _per_sample(target: Any, samples: int) -> list[int]:
    if not isinstance(target, list | tuple):
        raise ArgumentTypeError(f"target must be {_KINDS}, got {type(target).__name__}")
    for item in target:
        if not _is_int(item):
            raise ArgumentTypeError(f"target must be {_KINDS}, got an entry {item!r}")
    _check_length(target, samples)
    return [int(item) for item in target]


def _check_length(target: Sequence[Any], samples: int) -> None:
    if len(target) != samples:
        raise ArgumentError(
            f"target must have one entry per sample, {samples}, got {len(target)} entries"
        )


def _index_tuples(target: Any, samples: int, size: tuple[int, ...]) -> Tensor:
    form = f"a tuple of {len(size)} ints or a list with one such tuple per sample"
    if isinstance(target, tuple) and all(_is_int(item) for item in target):
        target = [target] * samples
    if not isinstance(target, list | tuple) or not all(
        isinstance(item, list | tuple) and all(_is_int(part) for part in item) for item in target
    ):
        raise ArgumentTypeError(
            f"target must be {form} for outputs of shape {[samples, *size]}, got {target!r}"
        )
    _check_length(target, samples)
    strides = [math.prod(size[i + 1 :]) for i in range(len(size))]
    flat = []
    for item in target:
        if len(item) != len(size) or not all(0 <= i < n for i, n in zip(item, size, strict=True)):
            raise ArgumentError(
                f"target must be {form}, each from 0 to below {list(size)}, got {tuple(item)}"
            )
        flat.append(sum(i * stride for i, stride in zip(item, strides, strict=True)))
    return torch.tensor(flat, dtype=torch.int64)
