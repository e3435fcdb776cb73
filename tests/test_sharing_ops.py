"""Sharing Ratio Decomposition, position by position from its definition, and what must hold."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rapkernels.relevance import Relevance
from rapkernels.testing import CONVS, LAYOUTS, Conv, Sampler, assert_close, convert
from tests.test_ops import DTYPES, agree

TOLERANCE = 1e-12  # float64, sums of at most some hundred terms


def positions(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, size)))


def taps_inside(conv: Conv, j: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The taps of output position j that lie in the input: (tap, input position)."""
    inside = []
    for tap in positions(conv.kernel):
        i = tuple(
            j[d] * conv.stride[d] - conv.padding[2 * d] + tap[d] * conv.dilation[d]
            for d in range(len(conv.size))
        )
        if all(0 <= at < size for at, size in zip(i, conv.size, strict=True)):
            inside.append((tap, i))
    return inside


def message(conv: Conv, weight: Tensor, tap: tuple[int, ...], vector: Tensor) -> Tensor:
    """``W_ij x_i``: what the vector of one input position sends through one tap."""
    outputs, inputs = weight.shape[0] // conv.groups, weight.shape[1]
    matrix = weight[(slice(None), slice(None), *tap)]
    parts = [
        matrix[g * outputs : (g + 1) * outputs] @ vector[g * inputs : (g + 1) * inputs]
        for g in range(conv.groups)
    ]
    return torch.cat(parts)


def by_definition(
    conv: Conv, x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor
) -> tuple[Tensor, Tensor]:
    """``R_i = sum_j mu_ij R_j`` of one sample, a scalar for each position, and what is absorbed."""
    result = torch.zeros(conv.size, dtype=torch.float64)
    absorbed = torch.zeros((), dtype=torch.float64)
    for j in positions(tuple(relevance.shape[1:])):
        incoming = relevance[(slice(None), *j)].sum()
        taps = taps_inside(conv, j)
        sent = [
            message(conv, weight, tap, x[(slice(None), *i)]) + bias / len(taps) for tap, i in taps
        ]
        whole = sum(sent, torch.zeros_like(bias))
        if not whole.any():
            absorbed += incoming
            continue
        for (_, i), part in zip(taps, sent, strict=True):
            result[i] += (part @ whole) / (whole @ whole) * incoming
    return result, absorbed


def conv_arguments(
    conv: Conv, sampler: Sampler, *, targets: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight = sampler.activation(sampler.batch, conv.channels, *conv.size), conv.weight(sampler)
    out = conv.apply(x.double(), weight.double()).shape
    incoming = sampler.relevance(targets * sampler.batch, *out[1:])
    return x, weight, sampler.normal(conv.outputs), incoming


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_conv_is_the_definition(operations: ModuleType, conv: Conv, with_bias: bool) -> None:
    x, weight, bias, incoming = conv_arguments(conv, Sampler(batch=2))
    bias = bias if with_bias else torch.zeros_like(bias)
    x[0] = x[0].clamp(max=0)  # in one sample, whole windows may be zero
    values, psi, scale, absorbed = operations.relprop_sharing_conv(
        x, weight, bias if with_bias else None, None, incoming, **conv.geometry()
    )
    assert not psi.any()
    actual = Relevance(values, psi, scale).to_float64().sum(1)
    for n in range(2):
        expected, lost = by_definition(conv, *(t.cpu() for t in (x[n], weight, bias, incoming[n])))
        assert_close(actual[n].cpu(), expected, TOLERANCE)
        assert_close(absorbed[n].cpu(), lost, TOLERANCE * float(incoming.abs().sum()))


def check_conserved(
    incoming: Relevance, result: tuple[Tensor, Tensor, Tensor, Tensor], tolerance: float
) -> None:
    outgoing = Relevance(*result[:3])
    largest = torch.maximum(incoming.magnitude(), outgoing.magnitude())
    missing = incoming.total() - outgoing.total() - result[3]
    assert (missing.abs() <= tolerance * largest).all(), missing


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_conv_conserves(operations: ModuleType, conv: Conv) -> None:
    sampler = Sampler(batch=3)
    x, weight, bias, incoming = conv_arguments(conv, sampler)
    x[0] = 0
    state = Relevance(incoming, *sampler.pending())
    for given in (bias, None, torch.zeros_like(bias)):
        result = operations.relprop_sharing_conv(x, weight, given, None, *state, **conv.geometry())
        check_conserved(state, result, TOLERANCE)
    assert_close(result[3][0], state.total()[0], TOLERANCE, "absorbed")


def test_kernels_in_the_padding_absorb(operations: ModuleType) -> None:
    """A position whose kernel sees only padding is bias alone: nobody is there to take it."""
    x, weight, bias = torch.ones(1, 1, 1).double(), torch.ones(1, 1, 1).double(), torch.ones(1)
    incoming = torch.tensor([[[3.0, 5.0, 7.0]]]).double()
    for given, lost in ((bias.double(), 10.0), (None, 10.0)):
        values, _, _, absorbed = operations.relprop_sharing_conv(
            x, weight, given, None, incoming, padding=[1, 1]
        )
        assert values.tolist() == [[[5.0]]]
        assert absorbed.tolist() == [lost]


@pytest.mark.parametrize("rows", [(), (3,)], ids=["(N, I)", "(N, 3, I)"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_the_definition(
    operations: ModuleType, rows: tuple[int, ...], with_bias: bool
) -> None:
    """A row is one position: all of its relevance comes back, inputs take mu each."""
    sampler = Sampler(batch=2)
    x, weight, bias = sampler.activation(2, *rows, 7), sampler.normal(5, 7), sampler.normal(5)
    bias = bias if with_bias else torch.zeros_like(bias)
    state = Relevance(sampler.relevance(2, *rows, 5), *sampler.pending())
    result = operations.relprop_sharing_linear(x, weight, bias if with_bias else None, *state)
    relevance = state.to_float64()
    expected = torch.zeros_like(x)
    for index in itertools.product(*map(range, x.shape[:-1])):
        whole = weight @ x[index] + bias
        for i in range(7):
            sent = weight[:, i] * x[index][i] + bias / 7
            expected[(*index, i)] = (sent @ whole) / (whole @ whole) * relevance[index].sum()
    assert_close(Relevance(*result[:3]).to_float64(), expected, TOLERANCE)
    check_conserved(state, result, TOLERANCE)


def test_a_convolution_of_one_position_is_a_linear_layer(operations: ModuleType) -> None:
    sampler = Sampler(batch=3)
    x, weight, bias = sampler.activation(3, 7), sampler.normal(5, 7), sampler.normal(5)
    state = sampler.relevance(3, 5), *sampler.pending()
    linear = operations.relprop_sharing_linear(x, weight, bias, *state)
    planes = state[0][..., None, None], *state[1:]
    conv = operations.relprop_sharing_conv(
        x[..., None, None], weight[..., None, None], bias, None, *planes
    )
    for ours, theirs in zip(linear, conv, strict=True):
        assert_close(ours.flatten(), theirs.flatten(), TOLERANCE)


def test_squares_are_shared(operations: ModuleType) -> None:
    v = torch.tensor([[[3.0, 0.0], [-4.0, 0.0]]], dtype=torch.float64)
    incoming = torch.tensor([[[20.0, 2.0], [5.0, 4.0]]], dtype=torch.float64)
    values, psi, _, absorbed = operations.share_squares(v, incoming)
    assert_close(values, torch.tensor([[[9.0, 0.0], [16.0, 0.0]]]), TOLERANCE)
    assert psi.tolist() == [0.0]
    assert absorbed.tolist() == [6.0]


def test_squares_are_the_sharing_ratio_of_a_max_pool(operations: ModuleType) -> None:
    """One sender for each channel: mu from the messages of the winners, position by position."""
    sampler = Sampler(batch=2)
    x, incoming = sampler.normal(2, 3, 4, 6), sampler.relevance(2, 3, 2, 3)
    pooled, winners = functional.max_pool2d(x, 2, return_indices=True)
    shared = operations.share_squares(pooled, incoming)
    values, *_ = operations.relprop_max_pool(x, *shared[:3], 2, absorb_zeros=False)
    expected = torch.zeros(2, 24, dtype=torch.float64)
    for n, j, k in itertools.product(range(2), range(2), range(3)):
        whole = pooled[n, :, j, k]
        for c in range(3):
            mu = whole[c] * whole[c] / (whole @ whole)
            expected[n, winners[n, c, j, k]] += mu * incoming[n, :, j, k].sum()
    assert_close(values.sum(1).flatten(1), expected, TOLERANCE)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_conv_geometry(native: ModuleType, conv: Conv, targets: int) -> None:
    layouts = list(LAYOUTS.values())
    for index, dtype in enumerate(DTYPES):
        for z_given in (False, True):
            sampler = Sampler(dtype, seed=index, batch=2)
            x, weight, bias, incoming = conv_arguments(conv, sampler, targets=targets)
            # Vectors of one or two channels nearly vanish at times, and shares have no bound there.
            bias = bias + bias.sign() * 4
            z = conv.apply(x.double(), weight.double()).to(dtype) if z_given else None
            pending = [p.repeat(targets) for p in sampler.pending()]
            geometry = [list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups]
            arguments = x, weight, bias if index % 2 else None, z, incoming, *pending, *geometry
            layout = layouts[(index + z_given) % len(layouts)]
            agree(native, "relprop_sharing_conv", convert(arguments, layout), dtype)


# Around the vector width, a run, the positions of a piece and the rows of a block.
CHANNELS = [1, 3, 15, 16, 17, 33, 1025, 2049]
POSITIONS = [1, 7, 15, 17, 33, 127, 129]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_sizes_of_vectors(native: ModuleType, channels: int, dtype: torch.dtype) -> None:
    for positions, targets in zip(POSITIONS, itertools.cycle([1, 3])):
        sampler = Sampler(dtype, seed=positions, batch=2)
        v = sampler.activation(2, channels, positions, 1)
        incoming = sampler.relevance(2 * targets, channels, positions, 1)
        pending = [p.repeat(targets) for p in sampler.pending()]
        for layout in LAYOUTS.values():
            agree(native, "share_squares", convert((v, incoming, *pending), layout), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 16, 17, 1025])
def test_sizes_of_linear_layers(native: ModuleType, size: int, dtype: torch.dtype) -> None:
    for targets, rows in itertools.product((1, 3), ((), (5,))):
        for inputs, outputs in ((size, 9), (9, size)):
            sampler = Sampler(dtype, seed=size, batch=2)
            x, weight = sampler.activation(2, *rows, inputs), sampler.normal(outputs, inputs)
            bias = sampler.normal(outputs) + 4 * inputs**0.5
            incoming = sampler.relevance(2 * targets, *rows, outputs)
            pending = [p.repeat(targets) for p in sampler.pending()]
            for given in (bias, None):
                arguments: tuple[Any, ...] = x, weight, given, incoming, *pending
                agree(native, "relprop_sharing_linear", arguments, dtype)


def test_small_and_large_vectors(native: ModuleType) -> None:
    """Squares leave the range of float32 long before vectors do."""
    sampler = Sampler(torch.float32, batch=2)
    for size in (2.0**-70, 2.0**-40, 2.0**100):
        v, incoming = sampler.normal(2, 5, 3, 4) * size, sampler.relevance(2, 5, 3, 4)
        agree(native, "share_squares", (v, incoming), torch.float32)
