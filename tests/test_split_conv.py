"""Convolutions that multiply each weight once: whatever the lanes, the blocks and the threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels import reference
from rapkernels.errors import ArgumentError
from rapkernels.testing import Sampler, assert_same_relevance
from tests.explainers import explainer
from tests.networks import drawn, seeded

pytestmark = [pytest.mark.built_extension, pytest.mark.cpu_only]

# (inputs, outputs), (height, width), kernel, stride, padding, dilation. Between them: segments of
# images, tiles of every kind, channels that fill no register, phases that no position of the kernel
# reaches, forwards with lists of weights (2048 positions and more).
SHAPES = {
    "3x3": ((16, 16), (24, 28), 3, 1, 1, 1),
    "3x3, odd channels": ((19, 37), (13, 11), 3, 1, 1, 1),
    "3x3, many positions": ((17, 18), (45, 46), 3, 1, 1, 1),
    "3x3, strided": ((32, 16), (46, 45), 3, 2, 1, 1),
    "1x1": ((40, 16), (33, 35), 1, 1, 0, 1),
    "1x1, strided": ((16, 40), (70, 35), 1, 2, 0, 1),
    "5x5, more padding than reach": ((16, 64), (6, 5), 5, 1, 3, 1),
    "3x3, dilated, strided": ((16, 21), (31, 64), 3, 2, 2, 3),
    "7x7, one position": ((16, 48), (7, 7), 7, 1, 0, 1),
    "4x4, stride 5": ((18, 16), (23, 19), 4, 5, 0, 1),
}

# Rounding of float32 sums of up to a few hundred terms, after a quotient that cancels.
TOLERANCE = 5e-6


def arguments(name: str, signed: bool, batch: int, targets: int = 1) -> list[Any]:
    (inputs, outputs), size, kernel, stride, padding, dilation = SHAPES[name]
    sampler = Sampler(torch.float32, signed=signed, batch=batch)
    x = sampler.activation(batch, inputs, *size)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = sampler.normal(outputs, inputs, kernel, kernel)
    z = nn.functional.conv2d(x, weight, None, stride, padding, dilation)
    relevance = sampler.relevance(targets * batch, *z.shape[1:])
    psi = sampler.relevance(targets * batch).double() / 10
    geometry = ([stride] * 2, [padding] * 4, [dilation] * 2, 1)
    return [x, weight, z, relevance, psi, None, *geometry, "rap_conv", not signed]


def doubled(given: list[Any]) -> list[Any]:
    return [value.double() if isinstance(value, Tensor) else value for value in given]


def row(given: list[Any], i: int) -> list[Any]:
    """One sample of a batch with one target."""
    at = (0, 2, 3, 4)
    return [value[i : i + 1] if k in at else value for k, value in enumerate(given)]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_reference(native: ModuleType, name: str, signed: bool, batch: int) -> None:
    given = arguments(name, signed, batch, targets=2)
    expected = reference.relprop_conv(*doubled(given))
    assert_same_relevance("relprop_conv", native.relprop_conv(*given), expected, TOLERANCE)


@pytest.mark.parametrize("name", SHAPES)
def test_zeros_stay_zeros(native: ModuleType, name: str) -> None:
    """An input without a message is not active, so that no shift reaches it."""
    given = arguments(name, False, 3)
    given[0][:, ::3] = 0
    given[0][1] = 0
    given[2] = None
    values = native.relprop_conv(*given)[0]
    assert not values[given[0] == 0].any()
    assert values[0].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_bits_depend_on_neither_threads_nor_batch(
    native: ModuleType, name: str, signed: bool, precision: str, threads: int
) -> None:
    given = arguments(name, signed, 17)
    step = partial(native.relprop_conv, precision=precision)
    whole = step(*given)
    torch.set_num_threads(1 if threads > 1 else 2)
    for again in (step(*given), step(*given)):
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    # Lists of weights are made where there are many positions, which a single row may not have.
    if given[2].numel() // given[2].shape[1] < 2048:
        for i in (0, 16):
            alone = step(*row(given, i))
            assert torch.equal(alone[0], whole[0][i : i + 1])


WITHOUT = pytest.mark.parametrize("which", [[0], [4, 5], [17], list(range(18))], ids=str)


def without_positive_weights(which: list[int]) -> list[Any]:
    given = arguments("3x3, many positions", False, 2)
    given[1][which] = -given[1][which].abs()
    given[2] = nn.functional.conv2d(given[0], given[1], None, 1, 1)
    return given


@WITHOUT
def test_outputs_without_positive_weights(native: ModuleType, which: list[int]) -> None:
    """Their lists are empty, at the start, in the middle, at the end and everywhere."""
    given = without_positive_weights(which)
    expected = reference.relprop_conv(*doubled(given))
    assert_same_relevance("relprop_conv", native.relprop_conv(*given), expected, TOLERANCE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@WITHOUT
def test_no_positive_message_is_made_of_rounding(
    native: ModuleType, which: list[int], precision: str
) -> None:
    """Where no weight is positive, all that alpha sends by positive messages is absorbed."""
    given = without_positive_weights(which)
    given[3], given[4] = given[3].abs(), None
    given[3][:, [i for i in range(18) if i not in which]] = 0
    given[10] = "alpha_beta"
    found = native.relprop_conv(*given, None, [2.0, 1.0, 0.0], precision=precision)
    whole = given[3].double().sum((1, 2, 3))
    # Of positions at the edges x may all be 0, so that nothing is sent by beta either.
    expected = reference.relprop_conv(*doubled(given), None, [2.0, 1.0, 0.0])[3]
    assert (expected >= 2 * whole * (1 - 1e-9)).all()
    torch.testing.assert_close(found[3], expected, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_negative_message_is_made_of_rounding(native: ModuleType, precision: str) -> None:
    """Where no weight is negative, all that beta sends by negative messages is absorbed."""
    given = arguments("3x3, many positions", False, 2)
    sampler = Sampler(torch.float32, signed=False, batch=2)
    x = sampler.normal(2, 256, 45, 46).abs().contiguous(memory_format=torch.channels_last)
    weight = sampler.normal(20, 256, 3, 3).abs()
    z = nn.functional.conv2d(x, weight, None, 1, 1)
    given[:5] = [x, weight, z, sampler.relevance(*z.shape).abs(), None]
    given[10] = "alpha_beta"
    found = native.relprop_conv(*given, None, [2.0, 1.0, 0.0], precision=precision)
    expected = reference.relprop_conv(*doubled(given), None, [2.0, 1.0, 0.0])
    assert expected[3].abs().min() > 100
    if precision == "bf16":
        # Positive relevance, so that each entry has the error of its two rounded factors.
        torch.testing.assert_close(found[0].double(), expected[0], rtol=2.0**-6.99, atol=0)
        torch.testing.assert_close(found[3], expected[3], rtol=TOLERANCE, atol=0)
    else:
        assert_same_relevance("relprop_conv", found, expected, TOLERANCE)


def test_weights_in_any_layout(native: ModuleType) -> None:
    for name in ("3x3, odd channels", "3x3, many positions"):
        given = arguments(name, False, 2)
        whole = native.relprop_conv(*given)
        weight = given[1]
        for other in (
            weight.contiguous(memory_format=torch.channels_last),
            weight.transpose(0, 1).contiguous().transpose(0, 1),
            torch.cat([weight, weight], 3)[..., :3],
        ):
            assert other.stride() != weight.stride()
            found = native.relprop_conv(*[other if v is weight else v for v in given])
            assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))


# ---- linear layers of many rows -----------------------------------------------------------------


def tokens(signed: bool, batch: int, length: int, rule: str, targets: int = 2) -> list[Any]:
    sampler = Sampler(torch.float32, signed=signed, batch=batch)
    x, weight = sampler.activation(batch, length, 72), sampler.normal(33, 72)
    relevance = sampler.relevance(targets * batch, length, 33)
    psi = sampler.relevance(targets * batch).double() / 10
    scale = torch.ones(targets * batch, dtype=torch.float64)
    parameters = {"rap": [], "gamma": [0.3, 1e-3], "alpha_beta": [2.0, 1.0, 1e-3]}[rule]
    bias = None if rule == "rap" else sampler.normal(33)
    return [x, weight, relevance, psi, scale, rule, not signed, bias, parameters]


@pytest.mark.parametrize("rule", ["rap", "gamma", "alpha_beta"])
@pytest.mark.parametrize(("batch", "length"), [(1, 300), (3, 50), (200, 1), (2, 1100)])
@pytest.mark.parametrize("signed", [False, True])
def test_linear_layers_of_many_rows(
    native: ModuleType, signed: bool, batch: int, length: int, rule: str
) -> None:
    given = tokens(signed, batch, length, rule)
    found = native.relprop_linear(*given)
    expected = reference.relprop_linear(*doubled(given))
    assert found[0].is_contiguous()
    # Relevance of an output near 0 of both signs grows with its rounding.
    assert_same_relevance("relprop_linear", found, expected, TOLERANCE if rule == "rap" else 1e-4)


# ---- bfloat16 -----------------------------------------------------------------------------------


def rounds() -> bool:
    """Whether the processor has what the kernels for bfloat16 need."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_rounds_factors_and_negative_sums(
    native: ModuleType, name: str, signed: bool
) -> None:
    given = arguments(name, signed, 3, targets=2)
    given[10] = "rap"
    found = native.relprop_conv(*given, precision="bf16")
    exact = doubled(given)
    expected = reference.relprop_conv(*exact)
    # The rule is linear: what a sum can lose is 2^-8 of each factor of each of its magnitudes. The
    # absolute form cancels besides, in float32.
    exact[3], exact[4] = reference.apply_shift(*exact[3:6]).abs(), None
    magnitudes = reference.relprop_conv(*exact)[0].abs()
    bound = 2.0**-6.99 * magnitudes + 1e-5 * magnitudes.max()
    if not signed:
        # Sums of negative messages lose 2^-8 of their two factors and of themselves, or of the
        # positive ones, which are made of them, as much as there is more of the negative ones.
        x, weight = exact[:2]
        stride, padding, dilation = (values[0] for values in exact[6:9])
        positive, negative = (
            nn.functional.conv2d(x, part, None, stride, padding, dilation).repeat(2, 1, 1, 1)
            for part in (weight.clamp_min(0), weight.neg().clamp_min(0))
        )
        exact[3] = exact[3] * (negative / positive).nan_to_num(0, 0, 0).clamp_min(1)
        bound += 3 * 2.0**-7.99 * reference.relprop_conv(*exact)[0].abs()
    error = (found[0].double() - expected[0]).abs()
    assert (error <= bound).all()
    assert torch.equal(found[0], native.relprop_conv(*given)[0]) != rounds()


def wide() -> nn.Module:
    layers = [nn.Conv2d(3, 24, 3), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5)).eval()


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
@pytest.mark.parametrize("method", ["rap", "EpsilonPlus", "EpsilonAlpha2Beta1"])
def test_maps_in_bfloat16(native: ModuleType, method: str) -> None:
    assert native
    model, x = seeded(wide).float(), drawn(4, 3, 20, 20).float()
    exact = explainer(method, model).attribute(x, 1)
    found = explainer(method, model, precision="bf16").attribute(x, 1)
    # EpsilonPlus has no second part, and no such kernel.
    assert torch.equal(found, exact) == (method == "EpsilonPlus" or not rounds())
    cosine = nn.functional.cosine_similarity(found.flatten(1), exact.flatten(1))
    assert (cosine > 0.9999).all()
    torch.testing.assert_close(found.sum((1, 2, 3)), exact.sum((1, 2, 3)), rtol=1e-2, atol=1e-3)


def test_precision_is_checked_and_shown(native: ModuleType) -> None:
    model = seeded(wide).float()
    for cls in (rk.RAP, rk.LRP):
        with pytest.raises(ArgumentError, match='precision must be one of "fp32", "bf16", got'):
            cls(model, precision="fp16")
        assert "precision='bf16'" in repr(cls(model, precision="bf16"))
    given = arguments("1x1", False, 1)
    for module in (native, reference):
        with pytest.raises(RuntimeError, match="precision must be 'fp32' or 'bf16', got 'fp16'"):
            module.relprop_conv(*given, precision="fp16")
