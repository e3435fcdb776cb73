"""Which kernels a plan names: those that a call then runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import rapkernels as rk
from rapkernels.dry_run import DryRun
from rapkernels.inputs import Inputs
from rapkernels.kernels import _Kernels
from rapkernels.testing import Sampler
from tests.explainers import explainer
from tests.networks import seeded

PRODUCTS = {
    *("aten::convolution_backward", "aten::conv_transpose2d"),
    *("aten::mm", "aten::mm_out", "aten::addmm_"),
}


def products_of_the_library(call: Callable[[], Any]) -> int:
    """How many transposed convolutions and matrix products torch is asked for meanwhile."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        call()
    return sum(event.count for event in profiled.key_averages() if event.key in PRODUCTS)


def on_meta(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.to("meta") if isinstance(value, Tensor) else value for value in given)


Convolution = tuple[tuple[int, int], int, int, str, str, torch.dtype]
# (channels), kernel, groups, rule, precision, dtype
CONVOLUTIONS: dict[str, Convolution] = {
    "3x3": ((32, 16), 3, 1, "rap_conv", "fp32", torch.float32),
    "1x1": ((64, 48), 1, 1, "rap_conv", "fp32", torch.float32),
    "bfloat16": ((32, 16), 3, 1, "rap_conv", "bf16", torch.float32),
    "few channels": ((3, 32), 3, 1, "rap_conv", "fp32", torch.float32),
    "depthwise": ((16, 16), 3, 16, "rap_conv", "fp32", torch.float32),
    "groups": ((32, 32), 3, 2, "rap_conv", "fp32", torch.float32),
    "float64": ((32, 16), 3, 1, "rap_conv", "fp32", torch.float64),
    "float16": ((32, 16), 3, 1, "rap_conv", "fp32", torch.float16),
    "epsilon": ((32, 16), 3, 1, "epsilon", "fp32", torch.float32),
}


def convolution(name: str, channels_last: bool, signed: bool) -> tuple[tuple[Any, ...], str]:
    (inputs, outputs), kernel, groups, rule, precision, dtype = CONVOLUTIONS[name]
    sampler = Sampler(dtype, signed=signed, batch=2)
    x = sampler.activation(2, inputs, 9, 8)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = sampler.normal(outputs, inputs // groups, kernel, kernel)
    relevance = sampler.relevance(2, outputs, 10 - kernel, 9 - kernel)
    geometry = [1, 1], [0] * 4, [1, 1], groups
    parameters = [0.1] if rule == "epsilon" else []
    state = relevance, None, None
    return (x, weight, None, *state, *geometry, rule, not signed, None, parameters), precision


@pytest.mark.built_extension
@pytest.mark.cpu_only
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(native: ModuleType, name: str, channels_last: bool, signed: bool) -> None:
    given, precision = convolution(name, channels_last, signed)
    kernel_of = native._registered.relprop_conv_kernel
    found = kernel_of(*given, precision=precision)
    run = partial(native.relprop_conv, *given, precision=precision)
    # The library's products are seen, those of our own kernels are not.
    assert (found == "library") == (products_of_the_library(run) > 0)
    assert found in {"library", "depthwise" if name == "depthwise" else "split_conv"}
    assert (found == "depthwise") == (name == "depthwise" and channels_last)
    if name in ("groups", "float64", "epsilon") or not channels_last:
        assert found == "library"
    # What has no entries gets the same answer.
    assert kernel_of(*on_meta(given), precision=precision) == found


Layer = tuple[tuple[int, ...], int, str, torch.dtype]
# (rows, inputs), outputs, rule, dtype
LINEAR: dict[str, Layer] = {
    "one row": ((1, 40), 24, "rap", torch.float32),
    "64 rows": ((2, 32, 40), 24, "rap", torch.float32),
    "256 rows": ((2, 128, 80), 24, "rap", torch.float32),
    "256 rows, float64": ((2, 128, 80), 24, "rap", torch.float64),
    "256 rows, short sums": ((2, 128, 8), 24, "rap", torch.float32),
    "256 rows, epsilon": ((2, 128, 80), 24, "epsilon", torch.float32),
    "epsilon": ((3, 40), 24, "epsilon", torch.float32),
    "absolute": ((3, 40), 24, "absolute", torch.float32),
}


@pytest.mark.built_extension
@pytest.mark.cpu_only
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers(native: ModuleType, name: str, signed: bool) -> None:
    shape, outputs, rule, dtype = LINEAR[name]
    sampler = Sampler(dtype, signed=signed, batch=shape[0])
    x, weight = sampler.activation(*shape), sampler.normal(outputs, shape[-1])
    relevance = sampler.relevance(*shape[:-1], outputs)
    parameters = [0.1] if rule == "epsilon" else []
    given = (x, weight, relevance, None, None, rule, not signed, None, parameters, None)
    kernel_of = native._registered.relprop_linear_kernel
    found = kernel_of(*given)
    library = products_of_the_library(partial(native.relprop_linear, *given)) > 0
    assert (found == "library") == library
    assert found in {"library", "linear", "split_conv"}
    assert (found == "library") == (rule == "epsilon" or (signed and name == "256 rows"))
    assert kernel_of(*on_meta(given)) == found


def network() -> nn.Module:
    layers = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 9, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )
    return seeded(lambda: layers, torch.float32)


def kernels(made: Any, x: Tensor) -> dict[str, str]:
    return {row.module: row.kernel for row in made.plan(x).rows}


@pytest.mark.built_extension
@pytest.mark.parametrize("samples", [2, 0])
def test_plans_name_operations_and_kernels(samples: int) -> None:
    x = torch.rand(samples, 3, 8, 8)
    depthwise = "library" if x.is_cuda else "depthwise"
    assert kernels(rk.RAP(network()), x) == {
        "0": "relprop_zbox_conv",
        "1": "-",
        "2": f"relprop_conv ({depthwise})",
        "3": "-",
        "4": "-",
        "5": "relprop_max_pool",
        "6": "-",
        "7": "relprop_linear (linear)",
        "8": "-",
        "9": "relprop_first_linear",
    }
    found = kernels(rk.LRP(network(), "EpsilonPlusFlat"), x)
    assert found["9"] == found["7"] == "relprop_linear (library)"
    assert "relprop_conv" in str(rk.RAP(network()).plan(x))


@pytest.mark.built_extension
@pytest.mark.cpu_only
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_are_those_of_the_device(device: str, native: ModuleType) -> None:
    """No GPU is needed to be told."""
    rap, x = rk.RAP(network()), torch.rand(2, 3, 8, 8)
    program = rap._program(*rap._check(x))
    inputs, values = Inputs.of(rap.model, x), program.graph.values(rap.model)
    watch = _Kernels(torch.device(device))
    DryRun(program, values, inputs).run(native, rap._begin, watch, watch.observer)
    on_cuda = device == "cuda" and bool(rk.build_info()["cuda"])
    assert watch.found["conv2d_1"] == [f"relprop_conv ({'library' if on_cuda else 'depthwise'})"]


@pytest.mark.built_extension
@pytest.mark.parametrize("method", ["equilibrium", "sharing_ratio", "EpsilonAlpha2Beta1"])
def test_other_methods_are_planned(method: str) -> None:
    x = torch.rand(2, 3, 8, 8)
    found = kernels(explainer(method, network()), x)
    assert any(kernel.startswith("relprop_") for kernel in found.values())
    assert "unknown" not in found.values()


def test_the_reference_has_no_kernels() -> None:
    found = kernels(rk.RAP(network(), backend="reference"), torch.rand(2, 3, 8, 8))
    assert set(found.values()) == {"-"}


class ReadsValues(rk.Rule):
    """Hands everything on, after a look at it."""

    name = "reads_values"

    def backward(self, ctx: Any, relevance: Any) -> Any:
        assert bool(ctx.materialise(relevance).isfinite().all())
        return relevance


def test_what_needs_values_is_unknown() -> None:
    made = rk.RAP(network(), rules={"4": ReadsValues})
    assert set(kernels(made, torch.rand(2, 3, 8, 8)).values()) == {"unknown"}
