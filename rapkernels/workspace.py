"""Memory that CPU operations hand on, within a call and to the next: see csrc/workspace.h."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rapkernels import _library


class Workspace:
    """Keeps at most 64 MiB from one call to the next, until it dies; threads may share it."""

    def __init__(self) -> None:
        native = _library.native()
        self._native: Any = None if native is None else native.Workspace()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """While it is open, large tensors of this thread take memory that others have left."""
        if self._native is None:
            yield
            return
        self._native.open()
        try:
            yield
        finally:
            self._native.close()

    @property
    def unused_bytes(self) -> int:
        """Bytes that wait for the next tensor."""
        return 0 if self._native is None else int(self._native.unused_bytes)


def empty_like(tensor: Tensor, memory_format: torch.memory_format | None = None) -> Tensor:
    """As ``torch.empty_like``, from the workspace where one is open."""
    native = _library.native()
    if native is None or type(tensor) is not Tensor or not tensor.is_cpu:
        return torch.empty_like(tensor, memory_format=memory_format or torch.preserve_format)
    result: Tensor = native.workspace_empty_like(tensor, memory_format)
    return result
