"""Memory that the operations of one call on the CPU hand on among them: see csrc/workspace.h."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rapkernels import _library


@contextmanager
def workspace() -> Iterator[None]:
    """While it is open, tensors of this thread take memory that others have left."""
    native = _library.native()
    if native is None:
        yield
        return
    native.open_workspace()
    try:
        yield
    finally:
        native.close_workspace()


def empty_like(tensor: Tensor, memory_format: torch.memory_format | None = None) -> Tensor:
    """As ``torch.empty_like``, from the workspace where one is open."""
    native = _library.native()
    if native is None or type(tensor) is not Tensor or tensor.device.type != "cpu":
        return torch.empty_like(tensor, memory_format=memory_format or torch.preserve_format)
    result: Tensor = native.workspace_empty_like(tensor, memory_format)
    return result
