"""Targets that are many entries of an output: a class over the positions of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapkernels import host
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.findings import Findings


@dataclass(frozen=True, eq=False)
class MaskedTarget:
    """The logits of a class at the positions of a mask, for outputs with positions.

    What is explained is their sum: each of these entries of the output ``(N, C, *size)`` is sent
    back, or the gradient of their sum is taken. For methods, see ``target`` of
    :meth:`rapkernels.RAP.attribute`.

    Args:
        channel: the class, dimension 1 of the output: an int for all samples or one per sample.
            None where the mask has that dimension too: any set of entries, such as those of the
            predicted classes, ``one_hot(logits.argmax(1), C).movedim(-1, 1).bool()``.
        mask: bool, ``size`` for all samples or ``(N, *size)``, such as ``(H, W)`` or ``(N, H, W)``;
            where ``channel`` is None ``(C, *size)`` or ``(N, C, *size)``. Each sample's must hold
            at least one position.
    """

    channel: int | Sequence[int] | Tensor | None
    mask: Tensor | np.ndarray[Any, Any]

    def expanded(self, shape: torch.Size, device: torch.device, findings: Findings) -> Tensor:
        """The mask for an output: ``(N, *size)``, or ``(N, C, *size)`` where it has channels.

        Args:
            shape: shape of the output.
            device: where the mask is wanted.
            findings: takes the check of its values.

        Raises:
            ArgumentTypeError: the mask is no bool tensor or array.
            ArgumentError: the output has no positions, the mask does not fit it or is empty; or it
                must be copied to a device whose stream is being captured.
        """
        if len(shape) < 3:
            raise ArgumentError(
                "target must be a class where the output has no positions, got a MaskedTarget for "
                f"an output of shape {list(shape)}"
            )
        mask = torch.as_tensor(self.mask) if isinstance(self.mask, np.ndarray) else self.mask
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ArgumentTypeError(f"mask of the target must be a bool tensor or array, got {got}")
        size = shape[1:] if self.channel is None else shape[2:]
        if mask.shape not in (size, (shape[0], *size)):
            without = "channel None" if self.channel is None else "a channel"
            raise ArgumentError(
                f"mask of the target must have shape {list(size)} or {[shape[0], *size]} with "
                f"{without} for an output of shape {list(shape)}, got {list(mask.shape)}"
            )
        if mask.device != device and findings.capturing:
            raise ArgumentError(
                "mask of the target must be on the device of x while a CUDA graph is captured, got "
                f"one on {mask.device}"
            )
        if mask.device != device:
            mask = host.send(mask, device) if host.at_hand(mask) else mask.to(device)
        mask = mask.expand(shape[0], *size)
        findings.check(mask, lambda: ~mask.flatten(1).any(1).all(), _refuse_empty)
        return mask


def _refuse_empty() -> None:
    raise ArgumentError("mask of the target must hold a position for each sample, got none")
