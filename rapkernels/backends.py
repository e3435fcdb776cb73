"""Which relevance operations run: the native ones or the reference."""

from __future__ import annotations

from types import ModuleType
from typing import Literal, get_args

import torch

from rapkernels import _library, ops, reference
from rapkernels.errors import ArgumentError, BackendError, BackendWarning

Backend = Literal["auto", "native", "reference"]


def check_backend(backend: str) -> None:
    """Raise ArgumentError unless the name is known."""
    if backend not in get_args(Backend):
        names = ", ".join(f'"{name}"' for name in get_args(Backend))
        raise ArgumentError(f"backend must be one of {names}, got {backend!r}")


def resolve_backend(backend: str, device: torch.device | None = None) -> ModuleType:
    """The module of relevance operations for a backend's name.

    "auto" is "native" where the extension has kernels for the device, else "reference", with one
    warning.

    Args:
        backend: its name.
        device: where the tensors are; None asks for the extension alone.

    Raises:
        BackendError: "native" is asked for and not there; says why.
    """
    if backend == "reference":
        return reference
    missing = _missing(device)
    if missing is None:
        return ops
    if backend == "auto":
        _library.warn_reference_once(missing, BackendWarning)
        return reference
    raise BackendError(
        f'backend="native" needs {missing}, or use backend="reference"'
    ) from _library.import_error()


def _missing(device: torch.device | None) -> str | None:
    """What native operations on a device lack, and what to do about it; None for nothing."""
    if not _library.has_ext():
        return (
            "the extension of rapkernels, which is not loaded: build it by "
            "pip install --no-build-isolation ."
        )
    if device is None or device.type == "cpu" or (device.type == "cuda" and _library.has_cuda()):
        return None
    if device.type == "cuda":
        return (
            "CUDA kernels, which the extension of rapkernels was built without: build it by "
            "RAPKERNELS_CUDA=1 pip install --no-build-isolation ."
        )
    return f"kernels for {device.type}, which rapkernels does not have: move model and x to the CPU"
