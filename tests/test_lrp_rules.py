"""The LRP rules against zennit's on single layers, and against explicit messages.

zennit is called as it is used: a rule is registered on a layer, its relevance is a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zennit import rules

from rapkernels import reference
from rapkernels.relevance import Relevance
from rapkernels.testing import Sampler, assert_close
from tests.test_reference import messages_of

# float64, sums of at most some dozen terms over denominators of at least the stabilizer.
TOLERANCE = 1e-12
STABILIZER = 1e-2
LAYERS: dict[str, Callable[[bool], nn.Module]] = {
    "linear": lambda bias: nn.Linear(11, 6, bias=bias),
    "conv": lambda bias: nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 1), bias=bias),
    "conv, dilated, grouped": lambda bias: nn.Conv2d(4, 6, 3, 1, 2, 2, groups=2, bias=bias),
    "conv 1d": lambda bias: nn.Conv1d(3, 4, 3, 2, 1, bias=bias),
}
SIZES = {
    "linear": (11,),
    "conv": (3, 6, 5),
    "conv, dilated, grouped": (4, 6, 5),
    "conv 1d": (3, 9),
}
# rule of ours, its parameters, zennit's rule
RULES: dict[str, tuple[str, tuple[float, ...], Callable[[], Any]]] = {
    "epsilon": ("epsilon", (STABILIZER,), lambda: rules.Epsilon(STABILIZER)),
    "epsilon 0.25": ("epsilon", (0.25,), lambda: rules.Epsilon(0.25)),
    "norm": ("epsilon", (STABILIZER,), lambda: rules.Norm(STABILIZER)),
    "gamma": ("gamma", (0.25, STABILIZER), lambda: rules.Gamma(0.25, STABILIZER)),
    "gamma 2": ("gamma", (2.0, STABILIZER), lambda: rules.Gamma(2.0, STABILIZER)),
    "gamma 0": ("gamma", (0.0, STABILIZER), lambda: rules.Gamma(0.0, STABILIZER)),
    "alpha 2, beta 1": (
        "alpha_beta",
        (2.0, 1.0, STABILIZER),
        lambda: rules.AlphaBeta(2.0, 1.0, STABILIZER),
    ),
    "alpha 1.5, beta 0.5": (
        "alpha_beta",
        (1.5, 0.5, STABILIZER),
        lambda: rules.AlphaBeta(1.5, 0.5, STABILIZER),
    ),
    "alpha 1, beta 0": (
        "alpha_beta",
        (1.0, 0.0, STABILIZER),
        lambda: rules.AlphaBeta(1.0, 0.0, STABILIZER),
    ),
    "z+": ("alpha_beta", (1.0, 0.0, STABILIZER), lambda: rules.ZPlus(STABILIZER)),
}


def layer_of(kind: str, bias: bool) -> nn.Module:
    """A layer with weights and biases of both signs, from a seed."""
    sampler = Sampler(seed=5)
    layer = LAYERS[kind](bias).double()
    for parameter in layer.parameters():
        parameter.data = sampler.normal(*parameter.shape)
    return layer


def by_zennit(rule: Any, layer: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    handle = rule.register(layer)
    try:
        x = x.clone().requires_grad_()
        (result,) = torch.autograd.grad(layer(x), x, relevance)
    finally:
        handle.remove()
    return result


def geometry_of(layer: Any) -> dict[str, Any]:
    """The keyword arguments of ``relprop_conv``."""
    return {
        "stride": layer.stride,
        "padding": [edge for edge in layer.padding for _ in range(2)],
        "dilation": layer.dilation,
        "groups": layer.groups,
    }


def propagate(
    layer: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Relevance,
    rule: str,
    parameters: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """True relevance of the inputs, and what was absorbed."""
    options: dict[str, Any] = {"rule": rule, "bias": bias, "parameters": parameters}
    if isinstance(layer, nn.Linear):
        result = reference.relprop_linear(x, weight, *state, **options)
    else:
        result = reference.relprop_conv(x, weight, None, *state, **geometry_of(layer), **options)
    assert not result[1].any(), "these rules do not shift"
    return Relevance(*result[:3]).to_float64(), result[3]


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", RULES)
def test_rule_is_that_of_zennit(name: str, kind: str, signed: bool, bias: bool) -> None:
    rule, parameters, theirs = RULES[name]
    sampler = Sampler(signed=signed)
    layer = layer_of(kind, bias)
    x = sampler.activation(3, *SIZES[kind])
    x[0] = 0
    state = Relevance(sampler.relevance(*layer(x).shape), *sampler.pending())
    weight, given = layer.weight.detach(), layer.bias.detach() if bias else None
    ours, _ = propagate(layer, x, weight, given, state, rule, parameters)
    assert_close(ours, by_zennit(theirs(), layer, x, state.to_float64()), TOLERANCE)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["w2", "flat"])
def test_rules_without_the_input_are_epsilon_on_ones(name: str, kind: str, bias: bool) -> None:
    """zennit squares the bias in the denominator of w2, and leaves it out in flat."""
    sampler = Sampler()
    layer = layer_of(kind, bias)
    x = sampler.activation(3, *SIZES[kind])
    state = Relevance(sampler.relevance(*layer(x).shape), *sampler.pending())
    weight, given = layer.weight.detach(), layer.bias.detach() if bias else None
    if name == "w2":
        theirs: Any = rules.WSquare(STABILIZER)
        weight, given = weight**2, None if given is None else given**2
    else:
        theirs, weight, given = rules.Flat(STABILIZER), torch.ones_like(weight), None
    ours, _ = propagate(layer, torch.ones_like(x), weight, given, state, "epsilon", (STABILIZER,))
    assert_close(ours, by_zennit(theirs, layer, x, state.to_float64()), TOLERANCE)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", LAYERS)
def test_zbox_is_that_of_zennit(kind: str, bias: bool) -> None:
    sampler = Sampler()
    layer: Any = layer_of(kind, bias)
    x = sampler.activation(3, *SIZES[kind])
    low, high = x.amin() - 0.5, x.amax() + 0.25
    state = Relevance(sampler.relevance(*layer(x).shape), *sampler.pending())
    operands = x, layer.weight.detach(), low, high, *state
    if kind == "linear":
        result = reference.relprop_zbox_linear(*operands, stabilizer=STABILIZER)
    else:
        result = reference.relprop_zbox_conv(*operands, **geometry_of(layer), stabilizer=STABILIZER)
    theirs = rules.ZBox(low.expand(1, *x.shape[1:]), high.expand(1, *x.shape[1:]), STABILIZER)
    ours = Relevance(*result[:3])
    assert_close(ours.to_float64(), by_zennit(theirs, layer, x, state.to_float64()), TOLERANCE)
    assert_close(state.total() - ours.total(), result[3], TOLERANCE, "absorbed")


def stab(value: float, stabilizer: float) -> float:
    return value + (stabilizer if value >= 0 else -stabilizer)


def shares_by_hand(column: Tensor, bias: float, rule: str, parameters: tuple[float, ...]) -> Tensor:
    """What each message of one output receives of a relevance of 1; the bias is one message more.

    The last entry is that of the bias.
    """
    messages = torch.cat([column, column.new_tensor([bias])])
    positive, negative = messages.clamp(min=0), messages.clamp(max=0)
    if rule == "absolute":
        whole = column.abs().sum()
        return torch.cat([column.abs(), column.new_zeros(1)]) / (whole if whole > 0 else 1)
    if rule == "epsilon":
        whole = stab(float(messages.sum()), *parameters)
        return messages / whole if whole else torch.zeros_like(messages)
    if rule == "gamma":
        gamma, stabilizer = parameters
        sign = float(messages.sum())
        if sign == 0:
            return torch.zeros_like(messages)
        favoured = messages + gamma * (positive if sign > 0 else negative)
        return favoured / stab(float(favoured.sum()), stabilizer)
    alpha, beta, stabilizer = parameters
    below = float(negative.sum())
    return alpha * positive / (float(positive.sum()) + stabilizer) - beta * negative / (
        stab(below, stabilizer) if below else -stabilizer
    )


BY_HAND = [
    ("absolute", ()),
    ("epsilon", (0.0,)),
    ("epsilon", (0.125,)),
    ("gamma", (0.25, 0.0)),
    ("gamma", (0.25, 0.125)),
    ("gamma", (1.5, 0.125)),
    ("alpha_beta", (1.0, 0.0, 0.125)),
    ("alpha_beta", (2.0, 1.0, 0.125)),
    ("alpha_beta", (1.5, 0.5, 0.125)),
    ("alpha_beta", (0.0, 1.0, 0.125)),
]


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("rule", "parameters"), BY_HAND)
def test_rule_equals_its_messages(
    rule: str, parameters: tuple[float, ...], kind: str, signed: bool, bias: bool
) -> None:
    """Every input gets its messages' shares; what the bias gets and what is missing is absorbed."""
    sampler = Sampler(signed=signed, batch=2)
    layer = layer_of(kind, bias)
    x = sampler.activation(2, *SIZES[kind])
    state = Relevance(sampler.relevance(*layer(x).shape), *sampler.pending())
    weight, given = layer.weight.detach(), layer.bias.detach() if bias else None
    ours, absorbed = propagate(layer, x, weight, given, state, rule, parameters)
    offsets = torch.zeros(weight.shape[0]) if given is None else given
    for n in range(2):
        map_of = functional.linear if kind == "linear" else layer._conv_forward  # type: ignore[union-attr]
        messages = messages_of(lambda one: map_of(one, weight, None), x[n])  # noqa: B023
        incoming = state.to_float64()[n].flatten()
        per_channel = len(incoming) // len(offsets)
        contribution = torch.zeros_like(messages[:, 0])
        left = torch.zeros(())
        for j, (column, relevance) in enumerate(zip(messages.T, incoming, strict=True)):
            shares = shares_by_hand(column, float(offsets[j // per_channel]), rule, parameters)
            contribution = contribution + shares[:-1] * relevance
            left = left + (1 - shares[:-1].sum()) * relevance
        assert_close(ours[n], contribution.view(x[n].shape), TOLERANCE)
        # A sum that may cancel: its unit is the largest contribution.
        unit = float(contribution.abs().max())
        assert abs(float(absorbed[n] - left)) <= TOLERANCE * unit


def test_an_output_of_exactly_0() -> None:
    """Epsilon and alpha-beta share its relevance out, gamma hands none of it on, as zennit's do."""
    x, weight = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([[1.0, -1.0]]).double()
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = weight
    relevance = torch.ones(1, 1).double()
    for rule, parameters, theirs, expected in [
        ("epsilon", (0.125,), rules.Epsilon(0.125), [8.0, -8.0]),
        ("epsilon", (0.0,), None, [0.0, 0.0]),
        ("gamma", (0.5, 0.125), rules.Gamma(0.5, 0.125), [0.0, 0.0]),
        ("alpha_beta", (2.0, 1.0, 0.0), rules.AlphaBeta(2.0, 1.0, 0.0), [2.0, -1.0]),
    ]:
        ours, absorbed = propagate(layer, x, weight, None, Relevance(relevance), rule, parameters)
        assert ours.tolist() == [expected]
        assert absorbed.tolist() == [1.0 - sum(expected)]
        if theirs is not None:
            assert by_zennit(theirs, layer, x, relevance).tolist() == [expected]


@pytest.mark.parametrize(("rule", "parameters"), BY_HAND)
def test_relevance_can_be_differentiated(rule: str, parameters: tuple[float, ...]) -> None:
    """The gradient is finite where inputs are 0, and right by differences."""
    sampler = Sampler(signed=False, batch=2)
    weight, bias = sampler.normal(5, 7), sampler.normal(5)
    relevance = sampler.relevance(2, 5)

    def values(x: Tensor) -> Tensor:
        return reference.relprop_linear(
            x, weight, relevance, rule=rule, bias=bias, parameters=parameters
        )[0]

    assert torch.autograd.gradcheck(values, sampler.activation(2, 7).add(0.5).requires_grad_())
    x = torch.zeros(2, 7).double().requires_grad_()
    (gradient,) = torch.autograd.grad(values(x).sum(), x)
    assert gradient.isfinite().all()
