"""The reference against the papers' equations, written out for a matrix of messages.

The messages m_ij = x_i J_ji come from the Jacobian J of the layer, so nothing here knows of
strides, groups or padding.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rapkernels import reference
from rapkernels.relevance import Relevance
from rapkernels.testing import (
    ADAPTIVE,
    CONVS,
    POOLS,
    SAMPLES,
    Conv,
    Pool,
    Sampler,
    assert_close,
    states,
)

TOLERANCE = 1e-12  # float64, sums of at most a few hundred terms


def messages_of(layer: Callable[[Tensor], Tensor], x: Tensor, by: Tensor | None = None) -> Tensor:
    """The messages (inputs, outputs) of one sample: ``x_i J_ji``, or ``by_i J_ji``."""
    # One copy of x for each output, so that a single backward pass gives every row of J.
    copies = x.expand(layer(x[None]).numel(), *x.shape).clone().requires_grad_()
    (jacobian,) = torch.autograd.grad(layer(copies).flatten(1).diagonal().sum(), copies)
    return (jacobian.flatten(1) * (x if by is None else by).flatten()).T


def uniform_shift(contribution: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 8-9, and what no neuron could take."""
    met = contribution != 0
    if not met.any():
        return contribution, total
    psi = (contribution.sum() - total) / met.sum()
    return contribution - psi * met, torch.zeros_like(total)


def rap_by_hand(messages: Tensor, relevance: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Eq. 7 or the published convolution rule, output by output."""
    contribution = torch.zeros_like(messages[:, 0])
    for column, incoming in zip(messages.T, relevance, strict=True):
        positive, negative = column.clamp(min=0), (-column).clamp(min=0)
        z_pos, z_neg = positive.sum(), negative.sum()
        through_positive = incoming if rule == "rap" else incoming.clamp(min=0)
        through_negative = torch.zeros_like(incoming) if rule == "rap" else incoming.clamp(max=0)
        rho = z_neg / (z_pos + z_neg) if z_neg > 0 else 0.0
        if z_pos > 0:
            contribution = contribution + positive / z_pos * through_positive
        if z_neg > 0:
            contribution = contribution + negative / z_neg * (through_negative + rho * incoming)
    return uniform_shift(contribution, relevance.sum())


def share_by_hand(messages: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Every output's relevance in proportion to its messages; outputs without any absorb."""
    contribution = torch.zeros_like(messages[:, 0])
    absorbed = torch.zeros_like(relevance[0])
    for column, incoming in zip(messages.T, relevance, strict=True):
        if column.sum() == 0:
            absorbed = absorbed + incoming
        else:
            contribution = contribution + column / column.sum() * incoming
    return contribution, absorbed


def check(
    result: tuple[Tensor, Tensor, Tensor, Tensor],
    sample: int,
    expected: tuple[Tensor, Tensor],
    shape: torch.Size,
) -> None:
    state, absorbed = Relevance(*result[:3]), result[3]
    assert_close(state.to_float64()[sample], expected[0].view(shape), TOLERANCE)
    assert_close(absorbed[sample], expected[1], TOLERANCE, "absorbed")


def incoming_of(sampler: Sampler, *shape: int) -> tuple[Relevance, Tensor]:
    state = Relevance(sampler.relevance(*shape), *sampler.pending())
    return state, state.to_float64()


@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("rule", ["rap", "rap_conv"])
@pytest.mark.parametrize("rows", [(), (4,)], ids=["(N, I)", "(N, 4, I)"])
def test_linear_equals_eq_7_to_9(rows: tuple[int, ...], rule: str, signed: bool) -> None:
    sampler = Sampler(signed=signed, batch=2)
    x, weight = sampler.activation(2, *rows, 7), sampler.normal(5, 7)
    state, relevance = incoming_of(sampler, 2, *rows, 5)
    result = reference.relprop_linear(x, weight, *state, rule)
    for n in range(2):
        messages = messages_of(lambda one: functional.linear(one, weight), x[n])
        check(result, n, rap_by_hand(messages, relevance[n].flatten(), rule), x[n].shape)


@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("rule", ["rap", "rap_conv"])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_conv_equals_eq_7_to_9(conv: Conv, rule: str, signed: bool) -> None:
    sampler = Sampler(signed=signed, batch=2)
    x, weight = sampler.activation(2, conv.channels, *conv.size), conv.weight(sampler)
    z = conv.apply(x, weight)
    state, relevance = incoming_of(sampler, *z.shape)
    result = reference.relprop_conv(x, weight, z, *state, **conv.geometry(), rule=rule)
    for n in range(2):
        messages = messages_of(lambda one: conv.apply(one, weight), x[n])
        check(result, n, rap_by_hand(messages, relevance[n].flatten(), rule), x[n].shape)


def test_both_rules_agree_where_relevance_is_not_negative() -> None:
    sampler = Sampler(batch=2)
    x, weight, relevance = sampler.normal(2, 7), sampler.normal(5, 7), sampler.normal(2, 5).abs()
    rap, conv = (
        reference.relprop_linear(x, weight, relevance, rule=r) for r in ("rap", "rap_conv")
    )
    assert_close(rap[0], conv[0], TOLERANCE)


def zbox_by_hand(
    layer: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    bounds: tuple[Tensor, Tensor],
    relevance: Tensor,
) -> tuple[Tensor, Tensor]:
    """Eq. 10 as printed: X J - L J+ - H J-, each output normalised."""
    low, high = (bound.expand(x.shape) for bound in bounds)
    messages = messages_of(lambda one: layer(one, weight), x)
    messages = messages - messages_of(lambda one: layer(one, weight.clamp(min=0)), x, low)
    messages = messages - messages_of(lambda one: layer(one, weight.clamp(max=0)), x, high)
    return share_by_hand(messages, relevance)


@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar bounds", "channel bounds"])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_zbox_conv_equals_eq_10(conv: Conv, per_channel: bool) -> None:
    sampler = Sampler(batch=2)
    x, weight = sampler.normal(2, conv.channels, *conv.size), conv.weight(sampler)
    dims = tuple(range(2 if per_channel else 1, x.dim()))
    low, high = x.amin(dims, keepdim=True) - 0.1, x.amax(dims, keepdim=True) + 0.2
    state, relevance = incoming_of(sampler, *conv.apply(x, weight).shape)
    result = reference.relprop_zbox_conv(x, weight, low, high, *state, **conv.geometry())
    for n in range(2):
        bounds = low[n], high[n]
        expected = zbox_by_hand(conv.apply, x[n], weight, bounds, relevance[n].flatten())
        check(result, n, expected, x[n].shape)


@pytest.mark.parametrize("rows", [(), (3,)], ids=["(N, I)", "(N, 3, I)"])
def test_zbox_linear_equals_eq_10(rows: tuple[int, ...]) -> None:
    sampler = Sampler(batch=2)
    x, weight = sampler.normal(2, *rows, 7), sampler.normal(5, 7)
    low, high = x.amin(), x.amax()
    state, relevance = incoming_of(sampler, 2, *rows, 5)
    result = reference.relprop_zbox_linear(x, weight, low, high, *state)
    for n in range(2):
        expected = zbox_by_hand(
            functional.linear, x[n], weight, (low, high), relevance[n].flatten()
        )
        check(result, n, expected, x[n].shape)


def test_zbox_bounds_are_zero_in_the_padding() -> None:
    x, weight, relevance = torch.ones(1, 1, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3)
    bounds = torch.tensor([0.5]), torch.tensor([2.0])
    values, _, _, absorbed = reference.relprop_zbox_conv(
        x, weight, *bounds, relevance, padding=[2, 2]
    )
    assert values.tolist() == [[[3.0]]]
    assert absorbed.tolist() == [0.0]


def test_first_step_equals_eq_6_where_inputs_are_not_negative() -> None:
    sampler = Sampler(batch=3, signed=False)
    x, weight, bias = sampler.activation(3, 7), sampler.normal(5, 7), sampler.normal(5)
    target = torch.tensor([4, 0, 4])
    logits = functional.linear(x, weight, bias)
    score = logits.gather(1, target[:, None])[:, 0]
    for rule in ("absolute", "author"):
        result = reference.relprop_first_linear(x, weight, bias, target, score, rule)
        for n in range(3):
            messages = messages_of(lambda one: functional.linear(one, weight), x[n])
            column = messages[:, target[n]]
            influence = column * (1 + bias[target[n]] / column.sum())  # Eq. 5
            expected = influence.abs() / influence.abs().sum() * influence.sum()  # Eq. 6
            check(result, n, (expected, torch.zeros((), dtype=torch.float64)), x[n].shape)


def test_first_step_shares_by_absolute_messages_of_any_sign() -> None:
    sampler = Sampler(batch=3)
    x, weight, score = sampler.activation(3, 7), sampler.normal(5, 7), sampler.normal(3)
    target = torch.tensor([2, 2, 0])
    result = reference.relprop_first_linear(x, weight, None, target, score)
    for n in range(3):
        messages = messages_of(lambda one: functional.linear(one, weight), x[n])
        column = messages[:, target[n]].abs()
        check(result, n, share_by_hand(column[:, None], score[n : n + 1]), x[n].shape)


MAX_POOLS = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
AVG_POOLS = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_max_pool_sends_everything_to_the_winner(pool: Pool, signed: bool) -> None:
    sampler = Sampler(batch=2, signed=signed)
    x = sampler.activation(2, 2, *pool.size)

    def layer(one: Tensor) -> Tensor:
        operation = MAX_POOLS[len(pool.size) - 1]
        return operation(one, pool.kernel, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)

    state, relevance = incoming_of(sampler, *layer(x).shape)
    result = reference.relprop_max_pool(
        x, *state, pool.kernel, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    )
    for n in range(2):
        expected = share_by_hand(messages_of(layer, x[n]), relevance[n].flatten())
        check(result, n, expected, x[n].shape)


@pytest.mark.parametrize("rule", ["absolute", "ratio"])
@pytest.mark.parametrize("pool", [p for p in POOLS.values() if set(p.dilation) == {1}])
def test_avg_pool_shares_each_window(pool: Pool, rule: str) -> None:
    sampler = Sampler(batch=2)
    x = sampler.activation(2, 2, *pool.size)

    def layer(one: Tensor) -> Tensor:
        operation = AVG_POOLS[len(pool.size) - 1]
        return operation(one, pool.kernel, pool.stride, pool.padding, pool.ceil_mode)

    state, relevance = incoming_of(sampler, *layer(x).shape)
    result = reference.relprop_avg_pool(
        x, *state, pool.kernel, pool.stride, pool.padding, pool.ceil_mode, rule
    )
    for n in range(2):
        messages = messages_of(layer, x[n])
        messages = messages.abs() if rule == "absolute" else messages
        check(result, n, share_by_hand(messages, relevance[n].flatten()), x[n].shape)


@pytest.mark.parametrize("rule", ["absolute", "ratio"])
@pytest.mark.parametrize(("size", "output"), ADAPTIVE)
def test_adaptive_avg_pool_shares_each_window(
    size: tuple[int, ...], output: tuple[int, ...], rule: str
) -> None:
    sampler = Sampler(batch=2)
    x = sampler.activation(2, 2, *size)
    pools = (
        functional.adaptive_avg_pool1d,
        functional.adaptive_avg_pool2d,
        functional.adaptive_avg_pool3d,
    )
    state, relevance = incoming_of(sampler, 2, 2, *output)
    result = reference.relprop_adaptive_avg_pool(x, *state, rule)
    for n in range(2):
        messages = messages_of(lambda one: pools[len(size) - 1](one, output), x[n])
        messages = messages.abs() if rule == "absolute" else messages
        check(result, n, share_by_hand(messages, relevance[n].flatten()), x[n].shape)


@pytest.mark.parametrize(("size", "output"), ADAPTIVE)
def test_adaptive_max_pool_sends_everything_to_the_winner(
    size: tuple[int, ...], output: tuple[int, ...]
) -> None:
    sampler = Sampler(batch=2)
    x = sampler.activation(2, 2, *size)
    pools = (
        functional.adaptive_max_pool1d,
        functional.adaptive_max_pool2d,
        functional.adaptive_max_pool3d,
    )
    state, relevance = incoming_of(sampler, 2, 2, *output)
    result = reference.relprop_adaptive_max_pool(x, *state)
    for n in range(2):
        messages = messages_of(lambda one: pools[len(size) - 1](one, output), x[n])
        check(result, n, share_by_hand(messages, relevance[n].flatten()), x[n].shape)


def test_max_pool_takes_the_first_of_equal_maxima() -> None:
    x = torch.tensor([[[[2.0, 1.0], [2.0, 2.0]]]])
    values, *_ = reference.relprop_max_pool(x, torch.ones(1, 1, 1, 1), None, None, 2)
    assert values.tolist() == [[[[1.0, 0.0], [0.0, 0.0]]]]


@pytest.mark.parametrize("rule", ["absolute", "ratio"])
def test_add_shares_by_term(rule: str) -> None:
    sampler = Sampler(batch=2)
    a, b = sampler.activation(2, 3, 4), sampler.activation(2, 3, 4)
    state, relevance = incoming_of(sampler, 2, 3, 4)
    values_a, values_b, scale, absorbed = reference.relprop_add(a, b, *state, rule)
    for n in range(2):
        terms = torch.stack([a[n].flatten(), b[n].flatten()])
        messages = torch.cat([torch.diag(term) for term in terms])
        messages = messages.abs() if rule == "absolute" else messages
        expected, unmet = share_by_hand(messages, relevance[n].flatten())
        shares = [Relevance(v, None, scale).to_float64()[n].flatten() for v in (values_a, values_b)]
        assert_close(torch.cat(shares), expected, TOLERANCE)
        assert_close(absorbed[n], unmet, TOLERANCE)


def test_add_by_ratio_is_unbounded_and_absolute_is_not() -> None:
    a, b, relevance = torch.tensor([[-0.9]]), torch.tensor([[1.0]]), torch.tensor([[1.0]])
    ratio = reference.relprop_add(a, b, relevance, rule="ratio")
    assert_close(torch.cat(ratio[:2]), torch.tensor([[-9.0], [10.0]]), 1e-5)
    absolute = reference.relprop_add(a, b, relevance)
    assert_close(torch.cat(absolute[:2]), torch.tensor([[0.9 / 1.9], [1.0 / 1.9]]), 1e-6)


def test_merge_adds_and_apply_shift_applies() -> None:
    sampler = Sampler(batch=3)
    first, relevance_a = incoming_of(sampler, 3, 4, 5)
    second = Relevance(sampler.relevance(3, 4, 5), -sampler.pending()[0], None)
    values, scale = reference.merge(*first, *second)
    expected = relevance_a + second.to_float64()
    assert_close(Relevance(values, None, scale).to_float64(), expected, TOLERANCE)
    assert_close(reference.apply_shift(*first), relevance_a, TOLERANCE)


@pytest.mark.parametrize("rule", ["rap", "rap_conv"])
def test_primitives_compose_to_the_linear_step(rule: str) -> None:
    sampler = Sampler(batch=3, signed=False)
    x, weight = sampler.activation(3, 7), sampler.normal(5, 7)
    state, _ = incoming_of(sampler, 3, 5)
    s_pos, s_neg, total = reference.split_quotient(
        x @ weight.T, x.abs() @ weight.abs().T, state.values, state.psi, rule
    )
    gradient = s_pos @ weight.clamp(min=0) + s_neg @ (-weight).clamp(min=0)
    result = Relevance(*reference.gate(x, gradient, total, state.scale))
    expected = Relevance(*reference.relprop_linear(x, weight, *state, rule)[:3])
    assert_close(result.to_float64(), expected.to_float64(), 1e-12)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_operation_is_differentiable(name: str) -> None:
    arguments = list(SAMPLES[name](Sampler(batch=1, seed=3)))
    # Piecewise smooth: keep clear of the kinks at 0 and of ties between maxima.
    chosen = [
        index
        for index, value in enumerate(arguments)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
    ]
    inputs = []
    for index in chosen:
        value = arguments[index]
        distinct = torch.linspace(0.5, 0.6, value.numel(), dtype=value.dtype).view(value.shape)
        inputs.append(torch.where(value == 0, distinct, value).requires_grad_())

    def relevance(*varied: Tensor) -> tuple[Tensor, ...]:
        for index, value in zip(chosen, varied, strict=True):
            arguments[index] = value
        result = getattr(reference, name)(*arguments)
        return tuple(state.to_float64() for state in states(name, result))

    assert torch.autograd.gradcheck(relevance, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_storage_is_rescaled_into_its_range(dtype: torch.dtype) -> None:
    x, weight = torch.ones(1, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype)
    scale = torch.tensor([2.0**90], dtype=torch.float64)
    result = reference.relprop_linear(x, weight, torch.ones(1, 2, dtype=dtype), None, scale)
    state = Relevance(*result[:3])
    assert_close(state.total(), torch.tensor([2.0**91], dtype=torch.float64), 1e-3)
    limit = torch.finfo(dtype).max
    expected = state.to_float64().clamp(max=limit)
    assert_close(reference.apply_shift(*state), expected, torch.finfo(dtype).eps)
