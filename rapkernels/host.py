"""Where the host and a device meet: to read a value of a device's tensor is to wait for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def at_hand(tensor: Tensor) -> bool:
    """Whether a value can be read without waiting for a device.

    Everything that reads values asks this first, so that a call on a device reads none on the way.
    """
    return tensor.device.type == "cpu"


def read_flags(flags: Sequence[Tensor]) -> list[bool]:
    """Read 0-d bool tensors of one device in one copy."""
    found: list[bool] = torch.stack(list(flags)).tolist()
    return found


def is_capturing(device: torch.device) -> bool:
    """Whether a device's current stream is captured in a CUDA graph: nothing can be read then."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for what the device is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
