"""Rules of operations that are no layers, against messages written out one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rapkernels as rk
from rapkernels.errors import UnsupportedOperationError
from tests.networks import MODERN, Function, drawn, images, network, seeded

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")

TOLERANCE = 1e-12
Operation = Callable[[Any, Tensor], Tensor]


def around(operation: Operation, width: int = 4, **modules: nn.Module) -> nn.Module:
    """An operation between two linear layers; ``before`` and ``after`` are its input and output."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(m.after(operation(m, m.before(m.values(x)))).flatten(1))  # type: ignore[no-any-return]

    def build() -> nn.Module:
        layers = {"values": nn.Linear(4, width), "before": nn.Dropout(), "after": nn.Dropout()}
        return Function(run, **layers, **modules, fc=nn.LazyLinear(5))

    model = build()
    model(torch.zeros(1, 6, 4))
    return seeded(lambda: _redrawn(model))


def _redrawn(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def tokens() -> Tensor:
    return drawn(3, 6, 4, seed=5, dtype=torch.float64)


def relevances(explainer: Any, *layers: str) -> list[Tensor]:
    _, found, report = explainer.attribute(tokens(), layers=list(layers), return_report=True)
    assert report.worst().error.max() <= TOLERANCE
    return [found[layer] for layer in layers]


def shares(messages: Tensor, rule: str) -> Tensor:
    """(outputs, inputs): how the relevance of each output goes to each input."""
    weights = messages.abs() if rule == "absolute" else messages
    whole = weights.sum(1, keepdim=True)
    stabilizer = 0.0 if rule == "absolute" else 1e-6
    return weights / (whole + torch.where(whole < 0, -stabilizer, stabilizer))


EXPLAINERS: dict[str, Callable[[nn.Module], Any]] = {
    "absolute": rk.RAP,
    "ratio": lambda model: rk.LRP(model, "EpsilonPlus"),
}


def attention_weights(m: Any, x: Tensor) -> Tensor:
    return torch.softmax(m.q(x) @ m.k(x).transpose(-1, -2) / 2, -1)


def _fused(m: Any, values: Tensor) -> Tensor:
    x = m.seen
    return functional.scaled_dot_product_attention(m.q(x), m.k(x), values)


def _by_hand(m: Any, values: Tensor) -> Tensor:
    return attention_weights(m, m.seen) @ values


def _by_batches(m: Any, values: Tensor) -> Tensor:
    return torch.bmm(attention_weights(m, m.seen), values)


def _by_einsum(m: Any, values: Tensor) -> Tensor:
    return torch.einsum("nij,njc->nic", attention_weights(m, m.seen), values)


class Attending(nn.Module):
    """Attention whose weights come from the input itself, by one of several ways to write it."""

    def __init__(self, mix: Operation) -> None:
        super().__init__()
        self.mix = mix
        self.q, self.k, self.values = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.before, self.after, self.fc = nn.Dropout(), nn.Dropout(), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["seen"] = x
        found: Tensor = self.fc(self.after(self.mix(self, self.before(self.values(x)))).flatten(1))
        return found


def _of_a_sigmoid(m: Any, values: Tensor) -> Tensor:
    return attention_weights(m, m.seen) @ torch.sigmoid(values)


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize("mix", [_fused, _by_hand, _by_batches, _by_einsum, _of_a_sigmoid])
def test_attention(mix: Operation, rule: str) -> None:
    model: Any = seeded(lambda: Attending(mix))
    before, after = relevances(EXPLAINERS[rule](model), "before", "after")
    x = tokens()
    weights, values = attention_weights(model, x), model.values(x)
    if mix is _of_a_sigmoid:
        values = torch.sigmoid(values)
    expected = torch.zeros_like(before)
    for n in range(3):
        for channel in range(4):
            messages = weights[n] * values[n, :, channel]
            expected[n, :, channel] = after[n, :, channel] @ shares(messages, rule)
    torch.testing.assert_close(before, expected, rtol=0, atol=1e-12)


def _factorised(m: Any, values: Tensor) -> Tensor:
    """What the softmax of the keys has mixed, read out by queries of both signs."""
    mixed = torch.softmax(m.k(m.seen), 1).transpose(1, 2) @ values
    return m.q(m.seen) @ mixed  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", EXPLAINERS)
def test_factorised_attention(rule: str) -> None:
    model: Any = seeded(lambda: Attending(_factorised))
    assert [
        row.rule for row in EXPLAINERS[rule](model).plan(tokens()).rows if row.module in ("q", "k")
    ] == ["-", "-"]
    before, after = relevances(EXPLAINERS[rule](model), "before", "after")
    x = tokens()
    queries, keys = model.q(x), torch.softmax(model.k(x), 1).transpose(1, 2)
    values = model.values(x)
    for n, channel in itertools.product(range(3), range(4)):
        messages = keys[n] * values[n, :, channel]
        read = shares(queries[n] * messages.sum(1), rule)
        expected = after[n, :, channel] @ read @ shares(messages, rule)
        torch.testing.assert_close(before[n, :, channel], expected, rtol=0, atol=1e-12)


def _bare(_: Any, values: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(values, value=values, key=values)


@pytest.mark.parametrize("rule", EXPLAINERS)
def test_attention_of_a_value_to_itself(rule: str) -> None:
    model = around(_bare)
    before, after = relevances(EXPLAINERS[rule](model), "before", "after")
    values = model.get_submodule("values")(tokens())
    weights = torch.softmax(values @ values.transpose(1, 2) / 2, -1)
    for n, channel in itertools.product(range(3), range(4)):
        messages = weights[n] * values[n, :, channel]
        expected = after[n, :, channel] @ shares(messages, rule)
        torch.testing.assert_close(before[n, :, channel], expected, rtol=0, atol=1e-12)


CONSTANTS: dict[str, Operation] = {
    "matmul": lambda m, y: m.mix.weight @ y,
    "einsum": lambda m, y: torch.einsum("ij,njc->nic", m.mix.weight, y),
    "expanded": lambda m, y: torch.bmm(m.mix.weight.expand(y.shape[0], 6, 6), y),
}
METHODS = EXPLAINERS | {"positive": lambda model: rk.AttributionEquilibrium(model, layer="after")}


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("name", CONSTANTS)
def test_weights_that_are_parameters_sign_the_messages(name: str, rule: str) -> None:
    model = around(CONSTANTS[name], mix=nn.Linear(6, 6))
    before, after = relevances(METHODS[rule](model), "before", "after")
    values, mix = model.get_submodule("values")(tokens()), model.get_submodule("mix").weight
    assert mix.min() < 0 < mix.max()
    for n, channel in itertools.product(range(3), range(4)):
        x = values[n, :, channel]
        messages = mix * x
        if rule == "positive":
            # What is 0 counts as 1e-9, as in averages.
            messages = mix.clamp(min=0) * (x.clamp(min=0) + 1e-9)
            messages = messages + (-mix).clamp(min=0) * ((-x).clamp(min=0) + 1e-9)
        expected = after[n, :, channel] @ shares(messages, rule.replace("positive", "absolute"))
        torch.testing.assert_close(before[n, :, channel], expected, rtol=0, atol=1e-12)


def test_a_gate_that_is_mixed_by_parameters_is_the_signal() -> None:
    model = around(lambda m, y: m.mix.weight @ torch.sigmoid(y), mix=nn.Linear(6, 6))
    before, after = relevances(rk.RAP(model), "before", "after")
    values = torch.sigmoid(model.get_submodule("values")(tokens()))
    mix = model.get_submodule("mix").weight
    for n, channel in itertools.product(range(3), range(4)):
        expected = after[n, :, channel] @ shares(mix * values[n, :, channel], "absolute")
        torch.testing.assert_close(before[n, :, channel], expected, rtol=0, atol=1e-12)


UNBATCHED: dict[str, Operation] = {
    "avg_pool2d": lambda _, y: functional.avg_pool2d(y, 2),
    "max_pool2d": lambda _, y: functional.max_pool2d(y, (3, 2)),
    "adaptive_avg_pool2d": lambda _, y: functional.adaptive_avg_pool2d(y, 2),
    "adaptive_max_pool2d": lambda _, y: functional.adaptive_max_pool2d(y, (2, 4)),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_a_pool_of_images_without_channels(name: str) -> None:
    operation = UNBATCHED[name]
    model = around(operation)
    with_channels = around(lambda m, y: operation(m, y.unsqueeze(1)).squeeze(1))
    for explain in EXPLAINERS.values():
        (before,), (expected,) = (
            relevances(explain(each), "before") for each in (model, with_channels)
        )
        assert torch.equal(before, expected)


def test_the_weights_of_attention_are_constants() -> None:
    model = seeded(lambda: Attending(_fused))
    rules = {row.module: row.rule for row in rk.RAP(model).plan(tokens()).rows}
    assert (rules["q"], rules["k"]) == ("-", "-")
    assert rules["values"] != "-"
    _, layers = rk.RAP(model).attribute(tokens(), layers=["q", "values"])
    assert not layers["q"].any()
    assert layers["values"].any()


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize(
    ("size", "mode"), [((9,), "linear"), ((4,), "linear"), ((12,), "nearest"), ((9, 5), "bilinear")]
)
def test_resampling(size: tuple[int, ...], mode: str, rule: str) -> None:
    planar = len(size) == 2

    def resample(_: Any, y: Tensor) -> Tensor:
        y = y.unsqueeze(1) if planar else y.transpose(1, 2)
        return functional.interpolate(y, size, mode=mode)

    model = around(resample)
    before, after = relevances(EXPLAINERS[rule](model), "before", "after")
    values = model.get_submodule("values")(tokens())
    # The matrix of the operation, an entry at a time.
    entries = torch.eye(24, dtype=torch.float64).view(24, 6, 4)
    matrix = resample(None, entries).flatten(1).T
    for n in range(3):
        messages = matrix * values[n].flatten()
        expected = after[n].flatten() @ shares(messages, rule)
        torch.testing.assert_close(before[n].flatten(), expected, rtol=0, atol=1e-12)


PASSING: dict[str, Operation] = {
    "squeeze and excitation": lambda m, y: y * torch.sigmoid(m.gate(y.mean(1, keepdim=True))),
    "sigmoid": lambda m, y: torch.sigmoid(m.gate(y)) * y,
    "hardsigmoid": lambda m, y: y * functional.hardsigmoid(m.gate(y)).clone(),
    "gated linear unit": lambda m, y: functional.silu(m.gate(y)) * y,
    "gated linear unit of gelu": lambda m, y: y * functional.gelu(m.gate(y)),
    "silu by hand": lambda _, y: y * torch.sigmoid(y),
    "divided": lambda m, y: y / m.gate(y).square().add(1),
    "divided by itself": lambda _, y: y / y,
    "hardswish by hand": lambda _, y: y * functional.relu6(y + 3) / 6,
    "layer norm": lambda m, y: m.norm(y),
    "layer norm by hand": lambda _, y: (y - y.mean(-1, True)) * (y.var(-1, keepdim=True).rsqrt()),
    "group norm": lambda _, y: functional.group_norm(y, 2),
    "group norm of aten": lambda _, y: torch.ops.aten.native_group_norm(
        y.transpose(1, 2).contiguous(), None, None, y.shape[0], 4, 6, 2, 1e-5
    )[0].transpose(1, 2),
    "instance norm": lambda _, y: functional.instance_norm(y),
    "rms norm": lambda _, y: functional.rms_norm(y, (4,)),
    "gelu": lambda _, y: functional.gelu(y),
    "gelu of tanh": lambda _, y: functional.gelu(y, approximate="tanh"),
    "leaky relu": lambda _, y: functional.leaky_relu(y, 0.2),
    "prelu": lambda m, y: functional.prelu(y, m.norm.weight[0]),
    "to another's device": lambda _, y: y.to(y.detach()),
    "of another's type": lambda m, y: y.type_as(m.gate(y)) + m.norm.weight[None].type_as(y),
    "expanded like another": lambda m, y: y * m.norm.weight[None, None].expand_as(y),
    "softplus": lambda _, y: functional.softplus(y),
    "tanh": lambda _, y: torch.tanh(y),
}


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize("name", PASSING)
def test_relevance_passes(name: str, rule: str) -> None:
    model = around(PASSING[name], gate=nn.Linear(4, 4), norm=nn.LayerNorm(4))
    before, after = relevances(EXPLAINERS[rule](model), "before", "after")
    assert after.any()
    torch.testing.assert_close(before, after, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", EXPLAINERS)
def test_factors_of_equal_standing_take_half_each(rule: str) -> None:
    model = around(lambda m, y: y * m.other(m.gate(y)), gate=nn.Linear(4, 4), other=nn.Dropout())
    after, other = relevances(EXPLAINERS[rule](model), "after", "other")
    torch.testing.assert_close(other, after / 2, rtol=0, atol=1e-14)


def test_a_signal_that_its_gate_repeats_sums_its_relevance() -> None:
    model = around(
        lambda m, y: m.mean(y.mean(1, keepdim=True)) * torch.sigmoid(m.gate(y)),
        gate=nn.Linear(4, 4),
        mean=nn.Dropout(),
    )
    after, mean = relevances(rk.RAP(model), "after", "mean")
    torch.testing.assert_close(mean, after.sum(1, keepdim=True), rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize("name", MODERN)
def test_a_row_is_the_sample_alone(name: str, rule: str) -> None:
    made, x = EXPLAINERS[rule](network(name)), images(3)
    together = made.attribute_targets(x, [1, 4])
    for n in range(3):
        alone = made.attribute_targets(x[n : n + 1], [1, 4])
        atol = 1e-12 * float(alone.abs().max())
        torch.testing.assert_close(together[:, n : n + 1], alone, rtol=0, atol=atol)


@pytest.mark.parametrize("strict", [True, False])
def test_a_gate_must_not_depend_on_the_memory_layout(strict: bool) -> None:
    def gated(_: Any, y: Tensor) -> Tensor:
        return y * torch.sigmoid(torch.as_strided(y, (y.shape[0], 1, 4), (24, 4, 1)))

    with pytest.raises(UnsupportedOperationError, match="memory in the layout of the export"):
        rk.RAP(around(gated), strict=strict).attribute(tokens())
