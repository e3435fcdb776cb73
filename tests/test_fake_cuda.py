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
from rapkernels.cache import ProgramCache
from rapkernels.errors import ArgumentError
from rapkernels.graph import Graph
from rapkernels.variants import VARIANTS
from tests.explainers import METHODS, STARTING_AT_LAYERS, WALKERS, explainer
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
    outputs: Tensor,
    inputs: Tensor | Sequence[Tensor],
    gradient: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, ...]:
    """In the place of ``torch.autograd.grad``, whose engine asks the driver for a device."""
    assert outputs.device == CUDA
    if gradient is None:
        assert outputs.dim() == 0
    else:
        like = (outputs.shape, outputs.dtype, outputs.device)
        assert like == (gradient.shape, gradient.dtype, gradient.device)
    leaves = (inputs,) if isinstance(inputs, Tensor) else inputs
    return tuple(torch.zeros_like(leaf) for leaf in leaves)


class Event:
    """In the place of CUDA's, which need a driver: 2 ms lie between any two."""

    def __init__(self, enable_timing: bool) -> None:
        self.timed, self.recorded, self.waited_for = enable_timing, False, False

    def record(self, stream: Any) -> None:
        assert stream == ("stream", CUDA)
        self.recorded = True

    def synchronize(self) -> None:
        self.waited_for = True

    def elapsed_time(self, end: Event) -> float:
        assert self.timed
        assert self.recorded
        assert end.recorded
        assert end.waited_for
        return 2.0


@pytest.fixture
def fake(operations: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    checked = on_one_device(operations)
    monkeypatch.setattr("rapkernels.explainer.resolve_backend", lambda *_: checked)
    monkeypatch.setattr(host, "is_capturing", lambda _: False)
    monkeypatch.setattr(host, "read_flags", lambda flags: [False] * len(torch.stack(list(flags))))
    monkeypatch.setattr(torch.autograd, "grad", no_autograd)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream", device))
    with FakeTensorMode() as mode:
        yield mode


def on_cuda(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


def moved_to_cuda(
    name: str, dtype: torch.dtype, mode: FakeTensorMode, patch: pytest.MonkeyPatch
) -> nn.Module:
    """A network whose parameters are fake; explainers take the graph of the real one."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        model = network(name, dtype)
        moved = copy.deepcopy(model)
    assert mode
    for module in moved.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(on_cuda(parameter), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = on_cuda(buffer)
    real = ProgramCache()
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        real.graph(model, images(dtype=dtype))

    class OfTheRealModel(ProgramCache):
        """Nothing is exported while fake tensors are about."""

        def _graph(self, *_: Any) -> Graph:
            (graph,) = real._graphs.values()
            return graph

    cache = OfTheRealModel()
    for place in ("explainer", "calls", "activation_patterns"):
        patch.setattr(f"rapkernels.{place}.cache_of", lambda _: cache)
    return moved


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
    model = moved_to_cuda(name, dtype, fake, monkeypatch)
    rap = rk.RAP(model, variant, bounds)
    x = torch.empty(2, 3, 6, 6, dtype=dtype, device=CUDA)
    runs = {row.module for row in rap.plan(x).rows}
    layers = [path for path, _ in rap.model.named_modules() if path in runs]
    target = None if dtype == torch.float32 else torch.empty(2, dtype=torch.int64, device=CUDA)
    relevance, exposed, report = rap.attribute(x, target, layers=layers, return_report=True)
    for part in (relevance, *exposed.values()):
        assert (part.device, part.dtype) == (CUDA, dtype)
    assert relevance.shape == x.shape
    assert {t.device.type for t in (report.target, report.score, report.total)} == {"cpu"}


def test_an_int_is_a_target_on_the_device(
    fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    rap = rk.RAP(moved_to_cuda("residual", torch.float32, fake, monkeypatch))
    assert rap.attribute(torch.empty(2, 3, 6, 6, device=CUDA), 1).device == CUDA


# ---- all methods --------------------------------------------------------------------------------


# Between them they use every rule; NETWORKS with every method would take minutes.
SOME = ("residual", "concatenated", "pads", "pools", "volumes", "moved")


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("method", [m for m in METHODS if not m.endswith(("Beta1Flat", "Plus"))])
def test_all_methods_stay_on_the_device(
    method: str, name: str, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved_to_cuda(name, torch.float32, fake, monkeypatch)
    x = torch.empty(2, 3, 6, 6, device=CUDA)
    target = torch.empty(2, dtype=torch.int64, device=CUDA)
    made = explainer(method, model, name)
    shape = (2, 6, 6) if "sharing_ratio" in method else (2, 3, 6, 6)
    for found in (
        made.attribute(x, target),
        *made.attribute_targets(x, torch.empty(2, 3, dtype=torch.int64, device=CUDA)),
    ):
        assert (found.device, found.dtype, found.shape) == (CUDA, torch.float32, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", WALKERS)
def test_reports_and_layers_of_all_methods(
    method: str, dtype: torch.dtype, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved_to_cuda("residual", dtype, fake, monkeypatch)
    x = torch.empty(2, 3, 6, 6, dtype=dtype, device=CUDA)
    made = explainer(method, model, "residual")
    relevance, layers, report = made.attribute(x, 1, layers=["a", "b"], return_report=True)
    for part in (relevance, *layers.values()):
        assert (part.device, part.dtype) == (CUDA, dtype)
    assert {t.device.type for t in (report.target, report.score, report.total)} == {"cpu"}
    assert {(row.forward_seconds, row.backward_seconds) for row in report} == {(0.002, 0.002)}


@pytest.mark.parametrize("method", [m for m in WALKERS if m not in STARTING_AT_LAYERS])
def test_output_relevance_stays_on_the_device(
    method: str, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved_to_cuda("residual", torch.float32, fake, monkeypatch)
    x = torch.empty(2, 3, 6, 6, device=CUDA)
    made = explainer(method, model)
    for given in ("ones", torch.empty(2, 5, device=CUDA)):
        assert made.attribute(x, output_relevance=given).device == CUDA
    with pytest.raises(ArgumentError, match="the device cuda:0 of the output"):
        made.attribute(x, output_relevance=torch.empty(2, 5))


@pytest.mark.parametrize("name", SOME)
def test_receptive_fields_and_activation_patterns_stay_on_the_device(
    name: str, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved_to_cuda(name, torch.float32, fake, monkeypatch)
    x = torch.empty(2, 3, 6, 6, device=CUDA)
    assert rk.activation_pattern_prediction(model, x).device == CUDA
    if name in ("residual", "shared"):
        field = rk.SharingRatio(model).receptive_field(x, "b", (1, 2))
        assert (field.device, field.shape) == (CUDA, (2, 6, 6))
