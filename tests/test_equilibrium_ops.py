"""Attribution Equilibrium of single layers: against its equations, its sums, its limits.

The equations are those of the published code (tests/golden), written out for a matrix of messages
``n_i |J_ji|`` from the Jacobian of the layer, so that nothing here knows of strides or padding.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rapkernels import reference
from rapkernels.relevance import Relevance
from rapkernels.testing import CONVS, LAYOUTS, Conv, Sampler, assert_close, channels_last, convert
from tests.test_ops import DTYPES, agree, agree_oddly_strided
from tests.test_reference import TOLERANCE, check, messages_of

# A kernel of height 1 that is not of a single position: the published code takes it for one.
GEOMETRIES = CONVS | {
    "2d row": Conv(3, 4, (4, 6), (1, 3), (1, 1), (0, 0, 1, 1), (1, 1)),
    "2d column": Conv(3, 4, (6, 4), (3, 1), (2, 1), (1, 1, 0, 0), (1, 1)),
}
DENSE = Conv(4, 5, (6, 5), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1))


def normalised(part: Tensor) -> Tensor:
    return part / part.sum().abs() if part.sum() != 0 else torch.zeros_like(part)


def by_hand(layer: Any, x: Tensor, relevance: Tensor, ratio: float | None) -> tuple[Tensor, Tensor]:
    """The contributions of one sample, and the relevance that the rule absorbs."""
    p, n = normalised(relevance.clamp(min=0)), normalised(relevance.clamp(max=0))
    hedged = p + n if ratio is None else ratio * p + n
    terms = []
    expected = torch.zeros_like(relevance[0])
    for neurons, evidence in (
        (x.clamp(min=0), hedged),
        ((x > 0).to(x.dtype), p),
        ((x <= 0).to(x.dtype), n),
    ):
        term = torch.zeros_like(x).flatten()
        for column, share in zip(messages_of(layer, x, neurons).T, evidence, strict=True):
            if column.sum() != 0:
                term = term + column / column.sum() * share
                expected = expected + share
        terms.append(term)
    active = terms[0] != 0
    if ratio is not None and active.any():
        terms[0] = terms[0] - p.sum() / active.sum() * active
        expected = expected - p.sum()
    return sum(terms, torch.zeros_like(terms[0])), relevance.sum() - expected


def conv_arguments(
    conv: Conv, sampler: Sampler, targets: int = 2, ratio: float = 1.5
) -> tuple[Any, ...]:
    x, weight = sampler.activation(sampler.batch, conv.channels, *conv.size), conv.weight(sampler)
    psi, scale = sampler.pending()
    output = conv.apply(x.double(), weight.double()).shape[1:]
    state = (
        sampler.relevance(targets * sampler.batch, *output),
        psi.repeat(targets),
        scale.repeat(targets),
    )
    geometry = list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups
    return x, weight, *state, *geometry, ratio


def propagated(operations: ModuleType, conv: Conv, *arguments: Any, **options: Any) -> Any:
    """Values, the sums handed on and the absorbed relevance."""
    result = operations.relprop_equilibrium_conv(*arguments, **conv.geometry(), **options)
    state = Relevance(*result[:3])
    assert (result[1] == 0).all()
    assert all(part.isfinite().all() for part in result)
    return state.to_float64(), state.total(), result[3]


@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("ratio", [2.0, -0.5])
@pytest.mark.parametrize("conv", GEOMETRIES.values(), ids=GEOMETRIES)
def test_conv_equals_the_published_rule(conv: Conv, ratio: float, signed: bool) -> None:
    sampler = Sampler(signed=signed, batch=2)
    x, weight, *state, _, _, _, _, _ = conv_arguments(conv, sampler)
    relevance = Relevance(*state).to_float64()
    result = reference.relprop_equilibrium_conv(x, weight, *state, **conv.geometry(), ratio=ratio)
    pointwise = set(conv.kernel) == {1}
    for n in range(4):
        expected = by_hand(
            lambda one: conv.apply(one, weight.abs()),
            x[n % 2],
            relevance[n].flatten(),
            None if pointwise else ratio,
        )
        check(result, n, expected, x[0].shape)


@pytest.mark.parametrize("rows", [(), (4,)], ids=["(N, I)", "(N, 4, I)"])
def test_linear_equals_the_rule_of_a_single_position(rows: tuple[int, ...]) -> None:
    sampler = Sampler(batch=2)
    x, weight = sampler.activation(2, *rows, 7), sampler.normal(5, 7)
    psi, scale = sampler.pending()
    state = Relevance(sampler.relevance(4, *rows, 5), psi.repeat(2), scale.repeat(2))
    result = reference.relprop_equilibrium_linear(x, weight, *state)
    for n in range(4):
        relevance = state.to_float64()[n].flatten()
        layer = lambda one: functional.linear(one, weight.abs())  # noqa: E731
        check(result, n, by_hand(layer, x[n % 2], relevance, None), x[0].shape)


def test_linear_is_a_convolution_of_a_single_position(operations: ModuleType) -> None:
    sampler = Sampler(batch=2)
    x, weight, relevance = (
        sampler.activation(2, 7),
        sampler.normal(5, 7),
        sampler.relevance(2, 5),
    )
    linear = operations.relprop_equilibrium_linear(x, weight, relevance)
    conv = operations.relprop_equilibrium_conv(
        x[..., None], weight[..., None], relevance[..., None], ratio=3.0
    )
    assert_close(linear[0], conv[0][..., 0], TOLERANCE)
    assert_close(linear[3], conv[3], TOLERANCE)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("conv", GEOMETRIES.values(), ids=GEOMETRIES)
def test_native_conv_geometry(native: ModuleType, conv: Conv, signed: bool, targets: int) -> None:
    layouts = list(LAYOUTS.values())
    for index, dtype in enumerate(DTYPES):
        sampler = Sampler(dtype, seed=1, signed=signed, batch=2)
        arguments = convert(conv_arguments(conv, sampler, targets), layouts[index % len(layouts)])
        agree(native, "relprop_equilibrium_conv", arguments, dtype)


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_any_stride_in_dimensions_of_size_one(native: ModuleType, conv: Conv) -> None:
    arguments = conv_arguments(conv, Sampler(batch=1), targets=1)
    agree_oddly_strided(native, "relprop_equilibrium_conv", arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 65, 513, 1025, 4097])
def test_native_linear_sizes(native: ModuleType, size: int, dtype: torch.dtype) -> None:
    for rows, other, targets in [(1, 9, 3), (3, 17, 1), (5, 1, 2)]:
        for inputs, outputs in [(size, other), (other, size)]:
            sampler = Sampler(dtype, seed=size, batch=rows)
            x, weight = sampler.activation(rows, inputs), sampler.normal(outputs, inputs)
            psi, scale = sampler.pending()
            incoming = sampler.relevance(targets * rows, outputs)
            arguments = x, weight, incoming, psi.repeat(targets), scale.repeat(targets)
            agree(native, "relprop_equilibrium_linear", arguments, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conv", GEOMETRIES.values(), ids=GEOMETRIES)
def test_targets_at_once_equal_one_call_each(
    operations: ModuleType, conv: Conv, layout: str
) -> None:
    arguments = convert(conv_arguments(conv, Sampler(batch=2), targets=3), LAYOUTS[layout])
    x, weight, relevance, psi, scale, *geometry = arguments
    together = operations.relprop_equilibrium_conv(*arguments)
    for t in range(3):
        part = slice(2 * t, 2 * t + 2)
        state = relevance[part], psi[part], scale[part]
        alone = operations.relprop_equilibrium_conv(x, weight, *state, *geometry)
        for ours, theirs in zip(together, alone, strict=True):
            assert_close(ours[part], theirs, TOLERANCE)


def test_targets_that_do_not_fit_in_one_chunk(native: ModuleType) -> None:
    """One target of this size fills a chunk of the native operation."""
    sampler = Sampler(torch.float32, batch=1)
    x, weight = sampler.activation(1, 2, 850, 850), sampler.normal(1, 2, 3, 3)
    psi, scale = sampler.pending()
    state = sampler.relevance(3, 1, 425, 425), psi.repeat(3), scale.repeat(3)
    arguments = x, weight, *state, [2, 2], [1, 1, 1, 1], [1, 1], 1, 2.0
    agree(native, "relprop_equilibrium_conv", arguments, torch.float32)


def test_each_sample_is_as_alone(operations: ModuleType) -> None:
    """The published code normalises over the batch: there a large sample swamps the others."""
    sampler = Sampler(batch=3)
    x, weight, relevance, *_ = conv_arguments(DENSE, sampler, targets=1)
    relevance = relevance * torch.tensor([1.0, 1000.0, 1e-6]).double().view(3, 1, 1, 1)
    values, _, absorbed = propagated(operations, DENSE, x, weight, relevance)
    for n in range(3):
        one = slice(n, n + 1)
        alone, _, of_alone = propagated(operations, DENSE, x[one], weight, relevance[one])
        assert_close(values[one], alone, TOLERANCE)
        assert_close(absorbed[one], of_alone, TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_size_of_the_relevance_plays_no_part(
    operations: ModuleType, dtype: torch.dtype
) -> None:
    sampler = Sampler(dtype, batch=2)
    x, weight, relevance, *_ = conv_arguments(DENSE, sampler, targets=1)
    values, _, _ = propagated(operations, DENSE, x, weight, relevance)
    scale = torch.tensor([2.0**40, 2.0**-40]).double()
    for larger in (relevance, relevance * 8, relevance / 8):
        others, _, _ = propagated(operations, DENSE, x, weight, larger, None, scale)
        assert torch.equal(others, values)
    each = torch.where(relevance > 0, relevance * 4, relevance)
    others, _, _ = propagated(operations, DENSE, x, weight, each)
    assert torch.equal(others, values)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0])
def test_sums(operations: ModuleType, ratio: float) -> None:
    """Where every output meets active and inactive neurons: ratio - 1 - 1 + 1 - 1."""
    x, weight, relevance, *_ = conv_arguments(DENSE, Sampler(batch=2, seed=2), targets=1)
    total = relevance.flatten(1).sum(1)
    one = torch.ones(2, dtype=torch.float64)
    _, handed_on, absorbed = propagated(operations, DENSE, x, weight, relevance, ratio=ratio)
    assert_close(handed_on, (ratio - 2) * one, TOLERANCE)
    assert_close(absorbed, total - (ratio - 2), TOLERANCE)
    # All neurons active: nothing takes the negative evidence of the last term.
    _, handed_on, _ = propagated(operations, DENSE, x.abs() + 1, weight, relevance, ratio=ratio)
    assert_close(handed_on, (ratio - 1) * one, TOLERANCE)
    # None active, or all inputs 0: that term alone.
    for inactive in (-x.abs(), torch.zeros_like(x)):
        _, handed_on, absorbed = propagated(
            operations, DENSE, inactive, weight, relevance, ratio=ratio
        )
        assert_close(handed_on, -one, TOLERANCE)
        assert_close(absorbed, total + 1, TOLERANCE)
    # One sign of relevance alone; without positive relevance there is no shift.
    _, handed_on, _ = propagated(operations, DENSE, x, weight, relevance.abs(), ratio=ratio)
    assert_close(handed_on, ratio * one, TOLERANCE)
    _, handed_on, _ = propagated(operations, DENSE, x, weight, -relevance.abs(), ratio=ratio)
    assert_close(handed_on, -2 * one, TOLERANCE)
    values, _, absorbed = propagated(operations, DENSE, x, weight, 0 * relevance, ratio=ratio)
    assert not values.any()
    assert not absorbed.any()


def test_a_batch_may_mix_signs_that_are_there_and_not(operations: ModuleType) -> None:
    x, weight, relevance, *_ = conv_arguments(DENSE, Sampler(batch=3, seed=2), targets=1)
    relevance = torch.stack([relevance[0], relevance[1].abs(), 0 * relevance[2]])
    _, handed_on, _ = propagated(operations, DENSE, x, weight, relevance)
    expected = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    assert (handed_on - expected).abs().max() < TOLERANCE


def test_weights_of_zero_carry_no_message(operations: ModuleType) -> None:
    x, weight, relevance, *_ = conv_arguments(DENSE, Sampler(batch=2), targets=1)
    total = relevance.flatten(1).sum(1)
    values, _, absorbed = propagated(operations, DENSE, x, 0 * weight, relevance)
    assert not values.any()
    assert_close(absorbed, total, TOLERANCE)


def test_padding_is_neither_active_nor_inactive(operations: ModuleType) -> None:
    weight, relevance = torch.ones(1, 1, 3), torch.tensor([[[1.0, 2.0, -3.0]]])
    active, *_, absorbed = operations.relprop_equilibrium_conv(
        torch.ones(1, 1, 1), weight, relevance, padding=[2, 2], ratio=2.0
    )
    # 2 - 1, less 1, and 1: all on the only neuron, which is not inactive.
    assert_close(active, torch.tensor([[[1.0]]]), 1e-6)
    assert_close(absorbed, torch.tensor([-1.0]), 1e-6)
    inactive, *_ = operations.relprop_equilibrium_conv(
        -torch.ones(1, 1, 1), weight, relevance, padding=[2, 2], ratio=2.0
    )
    assert_close(inactive, torch.tensor([[[-1.0]]]), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("conv", GEOMETRIES.values(), ids=GEOMETRIES)
def test_what_comes_in_goes_out_or_is_absorbed(
    operations: ModuleType, conv: Conv, dtype: torch.dtype
) -> None:
    sampler = Sampler(dtype, batch=2)
    x, weight, *state, _, _, _, _, _ = conv_arguments(conv, sampler)
    # Whole regions of one kind, so that messages are dropped.
    x[0, :, : conv.size[0] // 2] = 0
    x[1].abs_()
    incoming = Relevance(*state)
    values, handed_on, absorbed = propagated(operations, conv, x, weight, *state)
    error = (incoming.total() - handed_on - absorbed).abs()
    unit = incoming.magnitude() + values.flatten(1).abs().sum(1)
    assert (error <= {torch.float64: 1e-12, torch.float32: 1e-5}[dtype] * unit).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_beside_regions_of_one_kind(native: ModuleType, layout: str) -> None:
    """Denominators that are 0 stay 0 beside large ones, in the order of a real layer's sums."""
    sampler = Sampler(torch.float32, batch=2, signed=False)
    x, weight = sampler.activation(2, 32, 14, 28), sampler.normal(32, 32, 3, 3)
    x[:, :, :, 14:] = 0
    x[:, :, :5] = x[:, :, :5] * 1000 + 1
    psi, scale = sampler.pending()
    state = sampler.relevance(4, 32, 14, 28), psi.repeat(2), scale.repeat(2)
    arguments = x, weight, *state, [1, 1], [1, 1, 1, 1], [1, 1], 1, 2.0
    changed = channels_last if layout == "channels_last" else torch.clone
    agree(native, "relprop_equilibrium_conv", convert(arguments, changed), torch.float32)


def test_defaults_are_those_of_the_reference(native: ModuleType) -> None:
    sampler = Sampler(batch=2)
    x, weight = sampler.activation(2, 4, 6, 5), sampler.normal(5, 4, 3, 3)
    agree(native, "relprop_equilibrium_conv", (x, weight, sampler.relevance(2, 5, 4, 3)), x.dtype)
    agree(
        native,
        "relprop_equilibrium_linear",
        (x, sampler.normal(3, 5), sampler.relevance(4, 4, 6, 3)),
        x.dtype,
    )
