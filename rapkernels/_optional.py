"""Optional packages: import them late, and say what to install when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import RapError


class MissingPackageError(RapError, ImportError):
    """An optional package is needed and not installed; the message says what to install."""


def require(module: str, purpose: str, install: str) -> ModuleType:
    """Import ``module``, or raise :class:`MissingPackageError` saying what to install.

    Args:
        module: dotted name of the module to import.
        purpose: what needs it, as the start of a sentence ("drawing a heat map").
        install: what pip is to install: "rapkernels[cli]", "timm".
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise MissingPackageError(
            f"{purpose} needs the package {package}, which is not installed: "
            f"run pip install '{install}'.",
            name=package,
        ) from error
