"""A call on CUDA without a GPU: fake tensors know their device and refuse to be read.

Two devices in one operation raise, and so does an operation whose result depends on values.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rapkernels as rk
from rapkernels import host, reference
from rapkernels.cache import cache_of
from rapkernels.variants import VARIANTS
from tests.networks import NETWORKS, images, network

pytestmark = [
    # Autocast says that it is of no use without a GPU.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    # The fake device stands for a GPU where there is none.
    pytest.mark.cpu_only,
]
CUDA = torch.device("cuda", 0)


def on_one_device(operations: ModuleType) -> ModuleType:
    """The operations, each requiring one device: fake kernels do not look at all arguments."""
    checked = ModuleType("checked")

    def require(function: Callable[..., Any]) -> Callable[..., Any]:
        def checking(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            devices = {key: t.device for key, t in given.items() if isinstance(t, Tensor)}
            assert set(devices.values()) == {CUDA}, (function.__name__, devices)
            return function(*args, **kwargs)

        return checking

    for name in reference.__all__:
        setattr(checked, name, require(getattr(operations, name)))
    return checked


def no_autograd(
    outputs: Tensor, inputs: Sequence[Tensor], gradient: Tensor, **_: Any
) -> tuple[Tensor, ...]:
    """In the place of ``torch.autograd.grad``, whose engine asks the driver for a device."""
    like = (outputs.shape, outputs.dtype, outputs.device)
    assert like == (gradient.shape, gradient.dtype, gradient.device)
    return tuple(torch.zeros_like(leaf) for leaf in inputs)


@pytest.fixture
def fake(operations: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    checked = on_one_device(operations)
    monkeypatch.setattr("rapkernels.attribution.resolve_backend", lambda *_: checked)
    monkeypatch.setattr(host, "is_capturing", lambda _: False)
    monkeypatch.setattr(host, "read_flags", lambda flags: [False] * len(torch.stack(list(flags))))
    monkeypatch.setattr(torch.autograd, "grad", no_autograd)
    with FakeTensorMode() as mode:
        yield mode


def on_cuda(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


def explainer_on_cuda(
    name: str, dtype: torch.dtype, mode: FakeTensorMode, patch: pytest.MonkeyPatch, **settings: Any
) -> rk.RAP:
    """For a network whose parameters are fake, with the program of the real one."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        model = network(name, dtype)
        variant = VARIANTS[settings.get("variant", "default")]
        program = cache_of(model).program(model, images(dtype=dtype), variant)
        moved = copy.deepcopy(model)
    assert mode
    for module in moved.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(on_cuda(parameter), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = on_cuda(buffer)
    patch.setattr(rk.RAP, "_program", lambda *_: program)
    return rk.RAP(moved, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_all_stays_on_the_device(
    name: str,
    variant: Any,
    dtype: torch.dtype,
    fake: FakeTensorMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds = torch.empty((), device=CUDA), torch.empty(3, 1, 1, device=CUDA)
    explainer = explainer_on_cuda(name, dtype, fake, monkeypatch, variant=variant, bounds=bounds)
    x = torch.empty(2, 3, 6, 6, dtype=dtype, device=CUDA)
    runs = {row.module for row in explainer.plan(x).rows}
    layers = [path for path, _ in explainer.model.named_modules() if path in runs]
    target = None if dtype == torch.float32 else torch.empty(2, dtype=torch.int64, device=CUDA)
    relevance, exposed, report = explainer.attribute(x, target, layers=layers, return_report=True)
    for part in (relevance, *exposed.values()):
        assert (part.device, part.dtype) == (CUDA, dtype)
    assert relevance.shape == x.shape
    assert {t.device.type for t in (report.target, report.score, report.total)} == {"cpu"}


def test_an_int_is_a_target_on_the_device(
    fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = explainer_on_cuda("residual", torch.float32, fake, monkeypatch)
    assert explainer.attribute(torch.empty(2, 3, 6, 6, device=CUDA), 1).device == CUDA
