"""Loads the extension once and keeps the reason where it cannot be loaded."""

import warnings
from typing import Any

import torch

_import_error: ImportError | None = None
try:
    from rapkernels import _C  # type: ignore[attr-defined]
except ImportError as error:
    _C = None
    _import_error = error


def has_ext() -> bool:
    """Whether the native ops (``torch.ops.rapkernels``) are loaded."""
    return _C is not None


def native() -> Any:
    """The module of the extension; None where it is not loaded."""
    return _C


def has_cuda() -> bool:
    """Whether the native ops have CUDA kernels."""
    return _C is not None and bool(_C.build_info()["cuda"])


def import_error() -> ImportError | None:
    """Why the extension could not be loaded; None where it is."""
    return _import_error


def require_ext() -> None:
    """Raise RuntimeError, with the original ImportError as its cause, without the extension."""
    if _C is None:
        raise RuntimeError(
            "the native ops of rapkernels are not loaded: build them with "
            "'pip install --no-build-isolation .' or use backend='reference'; "
            f"loading failed with: {_import_error}"
        ) from _import_error


def build_info() -> dict[str, Any]:
    """How the library was built and what it runs on.

    Returns:
        A dict: ``version``, ``extension`` (are the native ops loaded), ``error`` (why not, or
        None), ``torch`` (the running version), ``threads``, and from the extension ``compiler``,
        ``built_with_torch``, ``openmp``, ``cpu_clones`` (instruction-set levels), ``cuda`` (are
        there CUDA kernels), ``cuda_version`` (of their compiler, or None) and
        ``cuda_architectures`` (what they were compiled for).
    """
    from rapkernels._version import __version__

    info: dict[str, Any] = {
        "version": __version__,
        "extension": has_ext(),
        "error": None if _import_error is None else str(_import_error),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "compiler": None,
        "built_with_torch": None,
        "openmp": None,
        "cpu_clones": (),
        "cuda": False,
        "cuda_version": None,
        "cuda_architectures": (),
    }
    if _C is not None:
        built = dict(_C.build_info())
        info["built_with_torch"] = built.pop("torch")
        info.update(built)
    return info


_warned: set[str] = set()


def warn_reference_once(missing: str, category: type[Warning]) -> None:
    """Say once per process and cause that the reference runs.

    Args:
        missing: what the native ops need, as the end of a sentence.
        category: of the warning.
    """
    if missing in _warned:
        return
    _warned.add(missing)
    failure = "" if _import_error is None else f" (loading failed with: {_import_error})"
    warnings.warn(
        "rapkernels runs its pure-PyTorch reference, which is slower: the native ops need "
        f"{missing}{failure}",
        category,
        stacklevel=3,
    )
