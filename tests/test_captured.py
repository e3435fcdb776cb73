"""What a capture asks for, as far as it shows without a GPU; tests/test_on_cuda.py has the rest."""

from __future__ import annotations

import pytest
import torch

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError
from tests.networks import images, network

pytestmark = pytest.mark.cpu_only


def test_a_capture_needs_a_gpu() -> None:
    explainer = rk.RAP(network("residual", torch.float32))
    with pytest.raises(ArgumentError, match="x must be on a CUDA device to be captured"):
        explainer.capture(images(dtype=torch.float32))
    with pytest.raises(ArgumentTypeError, match=r"x must be a torch\.Tensor"):
        explainer.capture("image")  # type: ignore[arg-type]
