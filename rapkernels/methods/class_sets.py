"""Which classes compete for a sample's input: checked, chosen, and found again in one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapkernels import host
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.findings import Findings
from rapkernels.targets import is_int

Classes = Sequence[int] | Sequence[Sequence[int]] | Tensor

_FORMS = "a list of ints, one list or row of a tensor (N, K) of ints per sample, or None"


def class_table(classes: Any) -> Tensor | None:
    """Turn given classes into a table.

    Args:
        classes: None, or K ints for all samples, or ``(N, K)``: K for each; lists, tuples, ranges,
            arrays or tensors.

    Returns:
        ``(K,)`` or ``(N, K)`` int64 on the CPU, distinct in each row, K at least 2; None for None.

    Raises:
        ArgumentTypeError: the classes have none of these forms.
        ArgumentError: there are fewer than two for a sample, rows differ in length, a class is
            negative, or one comes twice.
    """
    if classes is None:
        return None
    if isinstance(classes, Tensor):
        classes = classes.detach().cpu().numpy()
    if isinstance(classes, np.ndarray):
        if not np.issubdtype(classes.dtype, np.integer):
            raise ArgumentTypeError(f"classes must be {_FORMS}, got dtype {classes.dtype}")
        if classes.ndim not in (1, 2):
            raise ArgumentError(f"classes must be {_FORMS}, got shape {list(classes.shape)}")
        classes = classes.tolist()
    _check_sequence(classes)
    nested = bool(classes) and not is_int(classes[0])
    for row in classes if nested else [classes]:
        _check_row(row)
    lengths = sorted({len(row) for row in classes}) if nested else []
    if len(lengths) > 1:
        raise ArgumentError(
            f"classes must have the same number of classes for each sample, got {lengths[0]} and "
            f"{lengths[-1]}"
        )
    table = [list(row) for row in classes] if nested else list(classes)
    return torch.tensor(table, dtype=torch.int64, device="cpu")


def check_top(top: Any) -> None:
    """Raise unless the number of most probable classes is an int of at least 1."""
    if not is_int(top):
        raise ArgumentTypeError(f"top must be an int, got {type(top).__name__}")
    if top < 1:
        raise ArgumentError(f"top must be at least 1, got {top}")


def given_classes(
    table: Tensor, samples: int, outputs: int | None, device: torch.device, findings: Findings
) -> Tensor:
    """Give each sample its row of a table.

    Args:
        table: what :func:`class_table` returned.
        samples: N.
        outputs: number of the model's classes; None where it is not known.
        device: where the classes are wanted.
        findings: says whether the device's stream is captured.

    Returns:
        ``(N, K)`` int64.

    Raises:
        ArgumentError: the table has another number of rows, or a class that the model has not; or
            it must be copied to a device whose stream is being captured.
    """
    if table.dim() == 2 and table.shape[0] != samples:
        raise ArgumentError(
            f"classes must have one row per sample, {samples}, got {table.shape[0]} rows"
        )
    if outputs is not None and table.numel() and int(table.max()) >= outputs:
        raise ArgumentError(
            f"classes must be below the number of outputs {outputs}, got {int(table.max())}"
        )
    if table.dim() == 1:
        columns = [
            torch.full((samples,), one, dtype=torch.int64, device=device) for one in table.tolist()
        ]
        return torch.stack(columns, 1)
    if findings.capturing:
        raise ArgumentError(
            "classes must be one list for all samples or None while a CUDA graph is captured, got "
            f"a table of shape {list(table.shape)}"
        )
    return host.send(table, device)


def probable_classes(logits: Tensor, top: int) -> Tensor:
    """The most probable classes of each sample and the least probable one.

    Logits are sorted in place of probabilities, which have the same order and become equal where
    they underflow. Of equal logits the one of the lower class counts as more probable.

    Args:
        logits: ``(N, C)``.
        top: how many of the most probable ones.

    Returns:
        ``(N, K)`` int64, K the smaller of ``top + 1`` and C, the most probable class first.
    """
    order = logits.sort(dim=1, descending=True, stable=True).indices
    return torch.cat([order[:, : min(top, order.shape[1] - 1)], order[:, -1:]], 1)


def with_target(sets: Tensor, target: Tensor) -> Tensor:
    """Put a target in front of the sets ``(N, K)`` that lack it; the last class then leaves."""
    target = target[:, None]
    in_front = torch.cat([target, sets[:, :-1]], 1)
    return torch.where((sets == target).any(1, keepdim=True), sets, in_front)


def places(sets: Tensor, wanted: Tensor) -> Tensor:
    """The first place ``(N, W)`` of each wanted class ``(N, W)`` in its sample's set ``(N, K)``.

    0 where there is none.
    """
    return (wanted[:, :, None] == sets[:, None, :]).int().argmax(2)


def _check_sequence(value: Any) -> None:
    if not isinstance(value, list | tuple | range):
        raise ArgumentTypeError(f"classes must be {_FORMS}, got {type(value).__name__}")


def _check_row(row: Any) -> None:
    _check_sequence(row)
    for one in row:
        if not is_int(one):
            raise ArgumentTypeError(f"classes must be {_FORMS}, got an entry {one!r}")
        if one < 0:
            raise ArgumentError(f"classes must be at least 0, got {one}")
    if len(row) < 2:
        raise ArgumentError(f"classes must be at least 2 for each sample, got {len(row)}")
    if len(set(row)) < len(row):
        again = next(one for place, one in enumerate(row) if one in row[:place])
        raise ArgumentError(f"classes must be distinct, got {again} more than once")
