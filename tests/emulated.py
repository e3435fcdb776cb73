"""The CUDA kernels on the CPU: ``rapkernels.ops`` over the library that CMake builds from them.

RAPKERNELS_EMULATED_LIBRARY says where the library is; see CONTRIBUTING, "CUDA without a GPU".
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
from pathlib import Path
from types import FunctionType, ModuleType

import torch

import rapkernels
from rapkernels import _library, backends, ops

LIBRARY = Path(__file__).parents[1] / "build" / "emulated" / "librapkernels_emulated.so"


@functools.cache
def operations() -> ModuleType:
    """A module like ``rapkernels.ops``: the same functions over ``torch.ops.rapkernels_emulated``.

    Raises:
        OSError: the library is not built, or address sanitizer, which it needs, is not preloaded.
    """
    path = os.environ.get("RAPKERNELS_EMULATED_LIBRARY", LIBRARY)
    ctypes.CDLL(os.fspath(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
    module = ModuleType("rapkernels.ops, emulated")
    module.__dict__.update(vars(ops), _registered=torch.ops.rapkernels_emulated)
    for name in ops.__all__:
        # Without the extension the public function only says so.
        function = inspect.unwrap(getattr(ops, name))
        copy = FunctionType(function.__code__, vars(module), name, function.__defaults__)
        setattr(module, name, functools.update_wrapper(copy, function))
    return module


def take_the_place_of_native() -> None:
    """Let everything that asks for native operations get the emulated ones."""
    rapkernels.ops = backends.ops = operations()
    _library.has_ext = lambda: True
