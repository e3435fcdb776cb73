"""Devices and backends that cannot be used: each message says what to do."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import rapkernels as rk
from rapkernels import backends, errors
from tests.test_errors import classifier, images


@pytest.mark.built_extension
def test_a_model_on_two_devices() -> None:
    model = classifier()
    model[4].to("meta")
    with pytest.raises(errors.ArgumentError) as caught:
        rk.attribute(model, images(), backend="reference")
    assert str(caught.value) == (
        f"model must be on one device, got parameters and buffers on {images().device}, meta: "
        f'move it with model.to("{images().device}")'
    )
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten()).eval()
    model[0].running_mean = model[0].running_mean.to("meta")
    model[0].running_var = model[0].running_var.to("meta")
    with pytest.raises(errors.ArgumentError, match="x must be on the device of the model, meta"):
        rk.attribute(model, images(), backend="reference")


class Built:
    """Stands for an extension built with CUDA kernels or without."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda

    def build_info(self) -> dict[str, Any]:
        return {"cuda": self.cuda}


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (
            "cuda:1",
            "CUDA kernels, which the extension of rapkernels was built without: build it by "
            "RAPKERNELS_CUDA=1 pip install --no-build-isolation .",
        ),
        (
            "mps",
            "kernels for mps, which rapkernels does not have: move model and x to the CPU",
        ),
    ],
)
@pytest.mark.built_extension
def test_devices_without_native_operations(
    device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rapkernels._library._C", Built(cuda=False))
    monkeypatch.setattr("rapkernels._library._import_error", None)
    monkeypatch.setattr("rapkernels._library._warned", set())
    resolve, where = backends.resolve_backend, torch.device(device)
    with pytest.raises(errors.BackendError) as caught:
        resolve("native", where)
    assert str(caught.value) == f'backend="native" needs {message}, or use backend="reference"'
    with pytest.warns(errors.BackendWarning) as warned:
        assert resolve("auto", where) is rk.reference
    assert str(warned[0].message) == (
        "rapkernels runs its pure-PyTorch reference, which is slower: the native ops need "
        + message
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("auto", where) is rk.reference
        assert resolve("reference", where) is rk.reference
        for backend in ("auto", "native"):
            assert resolve(backend, torch.device("cpu")) is rk.ops
            assert resolve(backend) is rk.ops


def test_cuda_kernels_are_for_any_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapkernels._library._C", Built(cuda=True))
    for backend in ("auto", "native"):
        assert backends.resolve_backend(backend, torch.device("cuda", 3)) is rk.ops


@pytest.mark.built_extension
def test_native_backend_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapkernels._library._C", None)
    monkeypatch.setattr("rapkernels._library._import_error", ImportError("undefined symbol"))
    with pytest.raises(errors.BackendError, match='backend="native" needs the extension') as caught:
        rk.RAP(classifier(), backend="native")
    chain = [caught.value.__cause__, caught.value.__cause__.__cause__]  # type: ignore[union-attr]
    assert any(re.search("undefined symbol", str(error)) for error in chain)
