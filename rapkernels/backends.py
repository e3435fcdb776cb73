"""Which relevance operations run: the native ones or the reference."""

from __future__ import annotations

from types import ModuleType
from typing import Literal, get_args

from rapkernels import _library, ops, reference
from rapkernels.errors import ArgumentError, BackendError, BackendWarning

Backend = Literal["auto", "native", "reference"]


def check_backend(backend: str) -> None:
    """Raise ArgumentError unless the name is known."""
    if backend not in get_args(Backend):
        names = ", ".join(f'"{name}"' for name in get_args(Backend))
        raise ArgumentError(f"backend must be one of {names}, got {backend!r}")


def resolve_backend(backend: str) -> ModuleType:
    """The module of relevance operations for a backend's name.

    "auto" is "native" where the extension is loaded, else "reference", with one warning.

    Raises:
        BackendError: "native" is asked for and the extension is not loaded; says why.
    """
    if backend == "reference":
        return reference
    if _library.has_ext():
        return ops
    if backend == "auto":
        _library.warn_reference_once(BackendWarning)
        return reference
    try:
        _library.require_ext()
    except RuntimeError as error:
        raise BackendError(
            'backend="native" needs the extension of rapkernels, which is not loaded: build it by '
            'pip install --no-build-isolation ., or use backend="reference"'
        ) from error
    raise AssertionError("unreachable")
