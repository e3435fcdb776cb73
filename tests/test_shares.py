"""The shares of pools and adds: stabilizers, positive shares, windows whose output is 0."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zennit.layer import Sum
from zennit.rules import Norm

from rapkernels.relevance import Relevance
from rapkernels.testing import POOLS, Pool, Sampler, assert_close
from tests.test_ops import DTYPES, agree

TOLERANCE = 1e-12  # float64, sums of at most some hundred terms


def by_zennit(module: nn.Module, stabilizer: float, x: Tensor, relevance: Tensor) -> Tensor:
    """The input's relevance by zennit's Norm rule, attached to a module."""
    x = x.clone().requires_grad_()
    handles = Norm(stabilizer).register(module)
    (result,) = torch.autograd.grad(module(x), x, relevance)
    handles.remove()
    return result


@pytest.mark.parametrize("stabilizer", [1e-6, 0.25])
def test_stabilized_ratio_of_an_average_pool_is_zennits_norm(
    operations: ModuleType, stabilizer: float
) -> None:
    sampler = Sampler(batch=2)
    x, relevance = sampler.activation(2, 3, 6, 8), sampler.relevance(2, 3, 3, 4)
    x[0, 0, :2, :2] = 0  # one window of zeros
    expected = by_zennit(nn.AvgPool2d(2), stabilizer, x, relevance)
    values, _, scale, absorbed = operations.relprop_avg_pool(
        x, relevance, None, None, 2, rule="ratio", stabilizer=stabilizer
    )
    true = Relevance(values, None, scale)
    assert_close(true.to_float64(), expected, TOLERANCE)
    missing = relevance.sum((1, 2, 3)) - expected.sum((1, 2, 3))
    assert_close(absorbed, missing, TOLERANCE * float(true.magnitude().sum()))


@pytest.mark.parametrize("stabilizer", [1e-6, 0.25])
def test_stabilized_ratio_of_an_adaptive_average_pool_is_zennits_norm(
    operations: ModuleType, stabilizer: float
) -> None:
    sampler = Sampler(batch=2)
    # Windows of one to three rows, some of them shared.
    x, relevance = sampler.activation(2, 3, 5, 8), sampler.relevance(2, 3, 7, 2)
    expected = by_zennit(nn.AdaptiveAvgPool2d((7, 2)), stabilizer, x, relevance)
    values, _, scale, _ = operations.relprop_adaptive_avg_pool(
        x, relevance, rule="ratio", stabilizer=stabilizer
    )
    assert_close(Relevance(values, None, scale).to_float64(), expected, TOLERANCE)


@pytest.mark.parametrize("stabilizer", [1e-6, 0.25])
def test_stabilized_ratio_of_an_add_is_zennits_norm(
    operations: ModuleType, stabilizer: float
) -> None:
    sampler = Sampler(batch=2)
    terms, relevance = sampler.activation(2, 5, 7, 2), sampler.relevance(2, 5, 7)
    expected = by_zennit(Sum(), stabilizer, terms, relevance)
    values_a, values_b, scale, absorbed = operations.relprop_add(
        *terms.unbind(-1), relevance, rule="ratio", stabilizer=stabilizer
    )
    shares = [Relevance(values, None, scale) for values in (values_a, values_b)]
    for share, theirs in zip(shares, expected.unbind(-1), strict=True):
        assert_close(share.to_float64(), theirs, TOLERANCE)
    missing = relevance.sum((1, 2)) - expected.sum((1, 2, 3))
    unit = float(sum(share.magnitude().sum() for share in shares))
    assert_close(absorbed, missing, TOLERANCE * unit)


@pytest.mark.parametrize("pool", [p for p in POOLS.values() if set(p.dilation) == {1}])
def test_positive_shares_of_a_pool(operations: ModuleType, pool: Pool) -> None:
    """``p`` times the gradient of ``<pool(p), R / pool(p)>``, as the published code has it."""
    sampler = Sampler(batch=2)
    x, relevance = (
        sampler.activation(2, 3, *pool.size),
        sampler.relevance(2, 3, *pool.output_size()),
    )
    pools: tuple[Callable[..., Tensor], ...] = (
        functional.avg_pool1d,
        functional.avg_pool2d,
        functional.avg_pool3d,
    )
    positive = (x.clamp(min=0) + 1e-9).requires_grad_()
    pooled = pools[len(pool.size) - 1](
        positive, pool.kernel, pool.stride, pool.padding, pool.ceil_mode
    )
    (gradient,) = torch.autograd.grad(pooled, positive, relevance / pooled.detach())
    values, _, scale, absorbed = operations.relprop_avg_pool(
        x,
        relevance,
        None,
        None,
        *(pool.kernel, pool.stride, pool.padding),
        pool.ceil_mode,
        "positive",
    )
    expected = positive.detach() * gradient
    assert_close(Relevance(values, None, scale).to_float64(), expected, TOLERANCE)
    assert not absorbed.any()


def test_zero_windows_hand_on_or_absorb(operations: ModuleType) -> None:
    x = torch.tensor([[[0.0, 0.0, -1.0, -2.0, 1.0, 3.0]]])
    relevance = torch.tensor([[[2.0, 4.0, 8.0]]])
    kept = operations.relprop_max_pool(x, relevance, None, None, 2)
    assert Relevance(*kept[:3]).materialise().tolist() == [[[0.0, 0.0, 4.0, 0.0, 0.0, 8.0]]]
    assert kept[3].tolist() == [2.0]
    handed = operations.relprop_max_pool(x, relevance, None, None, 2, absorb_zeros=False)
    assert Relevance(*handed[:3]).materialise().tolist() == [[[2.0, 0.0, 4.0, 0.0, 0.0, 8.0]]]
    assert handed[3].tolist() == [0.0]
    adaptive = operations.relprop_adaptive_max_pool(x, relevance, absorb_zeros=False)
    assert Relevance(*adaptive[:3]).materialise().tolist() == [[[2.0, 0.0, 4.0, 0.0, 0.0, 8.0]]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_share_natively(native: ModuleType, dtype: torch.dtype) -> None:
    for rule, stabilizer in (("positive", 0.0), ("absolute", 0.5), ("ratio", 2.0)):
        for channels_last in (False, True):
            sampler = Sampler(dtype, batch=2)
            x, relevance = sampler.activation(2, 5, 7, 6), sampler.relevance(2, 5, 7, 6)
            # The stabilizer jumps where a sum changes its sign, which rounding decides near 0.
            x = x.abs() if rule == "ratio" else x
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            pending = sampler.pending()
            arguments = x, x.flip(1), relevance, *pending, rule, stabilizer
            agree(native, "relprop_add", arguments, dtype)
            pooled = sampler.relevance(2, 5, 3, 4)
            window = [2, 2], [2, 2], [0, 1], False
            arguments = x, pooled, *pending, *window, rule, stabilizer
            agree(native, "relprop_avg_pool", arguments, dtype)
            arguments = x, pooled, *pending, rule, stabilizer
            agree(native, "relprop_adaptive_avg_pool", arguments, dtype)
            clamped = x.clamp(min=0)
            arguments = clamped, pooled, *pending, *window[:3], [1, 1], False, False
            agree(native, "relprop_max_pool", arguments, dtype)
            agree(native, "relprop_adaptive_max_pool", (clamped, pooled, *pending, False), dtype)
