"""Which output is explained: from what the user gives to one index per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapkernels import host
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.findings import Findings
from rapkernels.masked_target import MaskedTarget

Target = (
    int | Sequence[int] | Sequence[Sequence[int]] | tuple[int, ...] | Tensor | MaskedTarget | None
)

Targets = (
    Sequence[int]
    | Sequence[Sequence[int]]
    | Sequence[tuple[int, ...]]
    | Sequence[MaskedTarget]
    | Tensor
)

_KINDS = "an int, a list, tuple or tensor with one int per sample, or None for the predicted class"


def resolve_target(
    target: Target, shape: torch.Size, device: torch.device, findings: Findings
) -> Tensor | None:
    """Turn a target into flat indices into each sample's output.

    Args:
        target: None for the predicted class; an int for all samples; a list, tuple or tensor
            ``(N,)`` of ints, one per sample; for outputs with more than two dimensions one tuple of
            ints (an index without the batch dimension) for all samples, a list of them, or a
            :class:`MaskedTarget`.
        shape: shape of the model's output, ``(N,)``, ``(N, C)`` or ``(N, ...)``.
        device: where the indices are wanted.
        findings: takes the check of the values of a tensor on a device.

    Returns:
        ``(N,)`` int64, all in range; a :class:`MaskedTarget`'s entries of the output as bool of its
        shape; or None for the predicted class.

    Raises:
        ArgumentTypeError: the target has none of these forms.
        ArgumentError: it has the wrong length, is out of range, or is None where the output has
            several positions per sample; or it must be copied to a device whose stream is being
            captured.
    """
    if isinstance(target, MaskedTarget):
        return _masked(target, shape, device, findings)
    samples, size = shape[0], tuple(shape[1:])
    while len(size) > 1 and size[-1] == 1:
        size = size[:-1]
    if target is None:
        if len(size) > 1:
            raise ArgumentError(
                f"target must be given as an index tuple of {len(size)} ints, or as a "
                "rapkernels.MaskedTarget(channel, mask) for a class over positions, where the "
                "output has more than one dimension per sample, got None for an output of shape "
                f"{list(shape)}"
            )
        return None
    if not size:
        size = (1,)
    if isinstance(target, Tensor) and not host.at_hand(target):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            name = str(target.dtype).removeprefix("torch.")
            raise ArgumentTypeError(f"target must be {_KINDS}, got dtype {name}")
        if _has_form(target, samples, size):
            return _on_device(target.detach().to(device, torch.int64), samples, size, findings)
    indices = _on_host(target, samples, size)
    if len(set(indices)) <= 1:
        return torch.full((samples,), (indices or [0])[0], dtype=torch.int64, device=device)
    if findings.capturing:
        raise ArgumentError(
            "target must be None, an int or a tensor on the device of x while a CUDA graph is "
            f"captured, got {type(target).__name__}"
        )
    return host.send(torch.tensor(indices, dtype=torch.int64, device="cpu"), device)


def resolve_targets(
    targets: Targets, shape: torch.Size, device: torch.device, findings: Findings
) -> Tensor:
    """Turn several targets for each sample into flat indices into its output.

    Args:
        targets: a list of T classes for all samples, or ``(N, T)`` ints (a tensor, an array or
            nested lists); for outputs with more than two dimensions a list of T index tuples or
            :class:`MaskedTarget`.
        shape: shape of the model's output.
        device: where the indices are wanted.
        findings: takes the check of the values of a tensor on a device.

    Returns:
        ``(T, N)`` int64, or bool ``(T, N, ...)`` where some are a :class:`MaskedTarget`.

    Raises:
        ArgumentTypeError, ArgumentError: as :func:`resolve_target`, or there is no target.
    """
    if math.prod(shape[1:]) != max([1, *shape[1:]]):
        if not isinstance(targets, list) or not targets:
            raise ArgumentTypeError(
                "targets must be a list of index tuples or MaskedTargets for outputs of shape "
                f"{list(shape)}, got {type(targets).__name__}"
            )
        columns: list[Any] = targets
    else:
        columns = split_targets(targets, shape[0])
    indices = [resolve_target(column, shape, device, findings) for column in columns]
    chosen = [index for index in indices if index is not None]
    if len({index.dtype for index in chosen}) > 1:
        chosen = [_as_mask(index, shape) for index in chosen]
    return torch.stack(chosen)


def _masked(
    target: MaskedTarget, shape: torch.Size, device: torch.device, findings: Findings
) -> Tensor:
    mask = target.expanded(shape, device, findings)
    if target.channel is None:
        return mask
    channel = resolve_target(target.channel, shape[:2], device, findings)
    assert channel is not None
    return mask[:, None] & _as_mask(channel, shape[:2]).view(*shape[:2], *[1] * len(shape[2:]))


def _as_mask(index: Tensor, shape: torch.Size) -> Tensor:
    """Flat indices ``(N,)`` as bool of the output's shape; what is bool already stays."""
    if index.dtype == torch.bool:
        return index
    entries = torch.arange(math.prod(shape[1:]), device=index.device)
    return (entries == index[:, None]).view(shape)


def split_targets(targets: Any, samples: int) -> list[Target]:
    """Split several targets per sample into one target for each of T calls.

    Args:
        targets: ``(N, T)`` ints, as a tensor, an array or N lists of T; or T ints for all samples.
        samples: N.

    Returns:
        T targets for :func:`resolve_target`, which checks their values.

    Raises:
        ArgumentTypeError: the targets have none of these forms.
        ArgumentError: there are not N rows, rows differ in length, or T is 0.
    """
    form = "ints of shape (N, T) or a list of T classes for all samples"
    rows, split = samples, targets
    if isinstance(targets, Tensor | np.ndarray):
        if targets.ndim not in (1, 2):
            raise ArgumentError(f"targets must be {form}, got shape {list(targets.shape)}")
        if targets.ndim == 2:
            rows, split = targets.shape[0], targets.T
    elif not isinstance(targets, list | tuple | range):
        raise ArgumentTypeError(f"targets must be {form}, got {type(targets).__name__}")
    elif targets and isinstance(targets[0], list | tuple):
        rows, split = len(targets), _transposed(targets, form)
    else:
        for one in targets:
            if not is_int(one):
                raise ArgumentTypeError(f"targets must be {form}, got an entry {one!r}")
    if rows != samples:
        raise ArgumentError(f"targets must have one row per sample, {samples}, got {rows} rows")
    if not len(split):
        raise ArgumentError("targets must name at least one class for each sample, got none")
    return list(split)


def _transposed(rows: Sequence[Any], form: str) -> list[list[Any]]:
    for row in rows:
        if not isinstance(row, list | tuple):
            raise ArgumentTypeError(f"targets must be {form}, got an entry {row!r}")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ArgumentError(
            "targets must have the same number of classes for each sample, got "
            f"{lengths[0]} and {lengths[-1]}"
        )
    return [list(column) for column in zip(*rows, strict=True)]


def _on_host(target: Any, samples: int, size: tuple[int, ...]) -> list[int]:
    """Check a target's values and flatten them."""
    if isinstance(target, Tensor | np.ndarray):
        target = _items(target)
    if len(size) > 1:
        return _index_tuples(target, samples, size)
    indices = _per_sample([target] * samples if is_int(target) else target, samples)
    for index in indices:
        if not 0 <= index < size[0]:
            raise ArgumentError(
                f"target must be at least 0 and below the number of outputs {size[0]}, got {index}"
            )
    return indices


def _has_form(target: Tensor, samples: int, size: tuple[int, ...]) -> bool:
    """Whether nothing but the values of a tensor can be wrong."""
    if len(size) > 1:
        return target.shape == (samples, len(size))
    return target.dim() == 0 or target.shape == (samples,)


def _on_device(target: Tensor, samples: int, size: tuple[int, ...], findings: Findings) -> Tensor:
    """Flatten a target of the right form; what is out of range is found later and clamped here."""
    rows = target if len(size) > 1 else target.expand(samples)[:, None]
    inside = [
        column.clamp(0, count - 1) for column, count in zip(rows.unbind(1), size, strict=True)
    ]

    def is_outside() -> Tensor:
        return (torch.stack(inside, 1) != rows).any()

    def complain() -> None:
        _on_host(target, samples, size)

    findings.check(target, is_outside, complain)
    flat = inside[0]
    for column, count in zip(inside[1:], size[1:], strict=True):
        flat = flat * count + column
    return flat


def is_int(value: Any) -> bool:
    """Whether a value is an int of Python or NumPy; True and False are not."""
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
        if not is_int(item):
            raise ArgumentTypeError(f"target must be {_KINDS}, got an entry {item!r}")
    _check_length(target, samples)
    return [int(item) for item in target]


def _check_length(target: Sequence[Any], samples: int) -> None:
    if len(target) != samples:
        raise ArgumentError(
            f"target must have one entry per sample, {samples}, got {len(target)} entries"
        )


def _index_tuples(target: Any, samples: int, size: tuple[int, ...]) -> list[int]:
    form = f"a tuple of {len(size)} ints or a list with one such tuple per sample"
    if isinstance(target, tuple) and all(is_int(item) for item in target):
        target = [target] * samples
    if not isinstance(target, list | tuple) or not all(
        isinstance(item, list | tuple) and all(is_int(part) for part in item) for item in target
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
    return flat
