"""Class distributions: the formula, against slow loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rapkernels.methods.class_competition import class_competition
from tests.networks import drawn

pytestmark = pytest.mark.usefixtures("one_thread")


def slow_competition(
    maps: Tensor,
    index: Sequence[int],
    temperatures: Sequence[float],
    tau: float,
    absolute: bool,
    scale: float | str | None,
) -> Tensor:
    """The formula as it is written, one element after the other, in Python's floats."""
    count, samples = maps.shape[:2]
    flat = maps.double().cpu().reshape(count, samples, -1)
    result = torch.zeros(flat.shape[1:], dtype=torch.float64, device="cpu")
    for n in range(samples):
        largest = max(abs(value) for value in flat[:, n].flatten().tolist())
        divisor = {"max": largest or 1.0, None: 1.0}.get(scale, scale)  # type: ignore[arg-type]
        for i in range(flat.shape[2]):
            values = flat[:, n, i].tolist()
            shares = []
            for temperature in temperatures:
                powers = [
                    math.exp(temperature * (abs(value) if absolute else value) / divisor)
                    for value in values
                ]
                shares.append(powers[index[n]] / sum(powers))
            share = sum(shares) / len(shares)
            if share - 1 / count > tau:
                result[n, i] = values[index[n]] * share
    return result.reshape(maps.shape[1:]).to(maps.device)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("scale", ["max", None, 0.7])
@pytest.mark.parametrize(
    ("temperatures", "tau"), [((10.0,), 0.01), ((1.0,), 5e-3), ((1.0, 5.0, 100.0), 0.0)]
)
def test_formula(temperatures: Any, tau: float, absolute: bool, scale: Any) -> None:
    maps = drawn(4, 3, 2, 5, 3, seed=1, dtype=torch.float64)
    index = torch.tensor([2, 0, 3])
    expected = slow_competition(maps, index.tolist(), temperatures, tau, absolute, scale)
    found = class_competition(maps, index, temperatures, tau, absolute, scale)
    assert 0 < int((expected == 0).sum()) < expected.numel()
    assert torch.equal(found == 0, expected == 0)
    # Two ways to sum a handful of exponentials in float64.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_by_hand() -> None:
    """|A| = (ln 3, 0) at T = 1: shares 3/4 and 1/4."""
    maps = torch.tensor([[[-math.log(3.0)]], [[0.0]]], dtype=torch.float64)
    first, second = (
        class_competition(maps, torch.tensor([k]), (1.0,), 0.0, True, None) for k in (0, 1)
    )
    torch.testing.assert_close(first, maps[0] * 0.75)
    assert second.tolist() == [[0.0]]
    # A negative value loses where signs count.
    signed = class_competition(maps, torch.tensor([0]), (1.0,), 0.0, False, None)
    assert signed.tolist() == [[0.0]]
    # 3/4 - 1/2 is not above tau = 1/4 but is above what is just below.
    at_tau = class_competition(maps, torch.tensor([0]), (1.0,), 0.2501, True, None)
    below = class_competition(maps, torch.tensor([0]), (1.0,), 0.2499, True, None)
    assert at_tau.tolist() == [[0.0]]
    assert torch.equal(below, first)


@pytest.mark.parametrize("count", [2, 3, 5, 7, 11])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tie_is_not_above_zero(count: int, dtype: torch.dtype) -> None:
    maps = drawn(1, 2, 3, 4, dtype=dtype).expand(count, 2, 3, 4)
    found = class_competition(maps, torch.tensor([1, 0]), (1.0, 5.0, 100.0), 0.0)
    assert not found.any()


@pytest.mark.parametrize("scale", ["max", None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_maps_give_zeros(dtype: torch.dtype, scale: Any) -> None:
    maps = drawn(3, 2, 4, seed=2).to(dtype)
    maps[:, 1] = 0
    found = class_competition(maps, torch.tensor([0, 2]), (10.0,), 0.0, scale=scale)
    assert found.dtype == dtype
    assert found[0].any()
    assert not found[1].any()


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("scale", ["max", None, 1e-300, 1e300])
@pytest.mark.parametrize("temperature", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_finite_for_every_finite_map(
    dtype: torch.dtype, temperature: float, scale: Any, absolute: bool
) -> None:
    limits = torch.finfo(dtype)
    entries = [limits.max, -limits.max, limits.tiny, -limits.smallest_normal / 2, 0.0, 1.0]
    maps = torch.cartesian_prod(*[torch.tensor(entries, dtype=dtype)] * 3).T.reshape(3, 1, -1)
    maps = torch.cat([maps, maps * limits.tiny], 1)
    for k in range(3):
        found = class_competition(maps, torch.tensor([k, k]), (temperature,), 0.0, absolute, scale)
        assert torch.isfinite(found).all()
        assert (found.abs() <= maps[k].abs()).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_extreme_settings_keep_their_meaning(dtype: torch.dtype) -> None:
    """The winner takes all, or nobody anything, where the dtype cannot hold the setting."""
    sharp: list[Any] = [(1e300, "max"), (1e300, None), (1.0, 1e-300), (1e300, 1e-300)]
    flat: list[Any] = [(1e-300, "max"), (1e-300, None), (1.0, 1e300)]
    maps = torch.tensor([[[2.0, 1.0]], [[-1.0, -3.0]]], dtype=dtype)
    for k, winner in enumerate([[[2.0, 0.0]], [[0.0, -3.0]]]):
        index = torch.tensor([k])
        for temperature, scale in sharp:
            found = class_competition(maps, index, (temperature,), 0.01, scale=scale)
            assert found.tolist() == winner
        for temperature, scale in flat:
            found = class_competition(maps, index, (temperature,), 0.01, scale=scale)
            assert not found.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    maps = drawn(3, 2, 50).to(dtype)
    index = torch.tensor([1, 2])
    found = class_competition(maps, index, (10.0,), 0.01)
    assert torch.equal(found, class_competition(maps.float(), index, (10.0,), 0.01).to(dtype))


def test_each_sample_has_a_scale_of_its_own() -> None:
    maps = drawn(3, 2, 20, dtype=torch.float64)
    larger = maps.clone()
    larger[:, 1] *= 1024
    index = torch.tensor([0, 1])
    found = class_competition(larger, index, (10.0,), 0.01)
    assert torch.equal(found[0], class_competition(maps, index, (10.0,), 0.01)[0])
