"""Turns the tensor-core convolutions on and off, which are asked for by an environment variable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "RAPKERNELS_FUSED_CONV"


@contextmanager
def fused_conv(asked: bool) -> Iterator[None]:
    """With kernels of our own on the tensor cores, or without."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1" if asked else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
