"""That `make test-emulated` tests what it says, and that its net holds."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rapkernels import backends
from rapkernels.testing import SAMPLES, Sampler

pytestmark = pytest.mark.emulated
needs_address_sanitizer = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "__asan_init"), reason="needs address sanitizer"
)


class Record(TorchDispatchMode):
    """The names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        self.names.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_operations_are_those_of_the_emulated_library(native: ModuleType) -> None:
    assert backends.resolve_backend("native") is native
    for name, sample in SAMPLES.items():
        with Record() as record:
            getattr(native, name)(*sample(Sampler()))
        assert f"rapkernels_emulated::{name}" in record.names
        assert f"rapkernels::{name}" not in record.names


# The tensor keeps its size when its memory is cut by one element.
READ_BEHIND = """
import torch
from tests import emulated

x = torch.ones(1, {size}, dtype={dtype})
x.untyped_storage().resize_(x.nbytes - {cut} * x.element_size())
emulated.operations().apply_shift(x)
"""


@needs_address_sanitizer
@pytest.mark.parametrize("cut", [0, 1])
# In vectors, and element by element; the last block is not full.
@pytest.mark.parametrize(("size", "dtype"), [(8800, torch.float32), (8801, torch.bfloat16)])
def test_a_read_behind_a_tensor_ends_the_process(size: int, dtype: torch.dtype, cut: int) -> None:
    code = READ_BEHIND.format(size=size, dtype=dtype, cut=cut)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    caught = "AddressSanitizer: heap-buffer-overflow" in ended.stderr
    assert (ended.returncode != 0, caught) == (cut > 0, cut > 0), ended.stderr


@needs_address_sanitizer
def test_fresh_memory_is_nan() -> None:
    for size in (1, 10_000_000):
        assert torch.empty(size).isnan().all()
