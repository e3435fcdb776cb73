"""What comes in is what goes out, and nothing is ever NaN or infinite.

Conservation per sample: |in - out - absorbed| <= tolerance * sum |R|, the larger of the two sums:
1e-12 in float64 and 1e-5 in float32. float16 and bfloat16 keep each entry to half a unit in the
last place (2^-11 and 2^-8 of it at most), and no shift makes up for that in the pools, the add and
the input layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rapkernels.relevance import Relevance
from rapkernels.testing import ADAPTIVE, CONVS, POOLS, SAMPLES, Sampler, states

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
CHECKED = settings(derandomize=True, deadline=None, database=None, max_examples=40)


def _single(tensor: Tensor) -> Tensor:
    alone = torch.zeros_like(tensor).flatten()
    alone[tensor.numel() // 2] = 1
    return alone.view(tensor.shape)


# What the inputs look like, by name; applied to a tensor of mixed signs.
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda tensor: tensor,
    "nonnegative": lambda tensor: tensor.clamp(min=0),
    "negative": lambda tensor: -tensor.abs(),
    "zero": torch.zeros_like,
    "constant": lambda tensor: torch.full_like(tensor, 0.7),
    "single": _single,
}
RELEVANCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda tensor: tensor,
    "zero": torch.zeros_like,
    "negative": lambda tensor: -tensor.abs() - 0.1,
    "single": _single,
}
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda tensor: tensor,
    "positive": lambda tensor: tensor.abs(),
    "negative": lambda tensor: -tensor.abs(),
    "sparse": lambda tensor: torch.where(tensor > 1, tensor, torch.zeros_like(tensor)),
}


class Drawn:
    """The tensors of one example."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.dtype: torch.dtype = draw(st.sampled_from(list(TOLERANCE)))
        self.batch: int = draw(st.integers(1, 3))
        self.sampler = Sampler(self.dtype, seed=draw(st.integers(0, 999)), batch=self.batch)

    def input(self, *shape: int) -> Tensor:
        return self.draw(st.sampled_from(list(INPUTS.values())))(self.sampler.normal(*shape))

    def weight(self, *shape: int) -> Tensor:
        return self.draw(st.sampled_from(list(WEIGHTS.values())))(self.sampler.normal(*shape))

    def state(self, *shape: int) -> Relevance:
        kind = self.draw(st.sampled_from(list(RELEVANCE.values())))
        psi, scale = self.sampler.pending()
        if self.draw(st.booleans()):
            return Relevance(kind(self.sampler.normal(*shape)))
        return Relevance(kind(self.sampler.normal(*shape)), psi, scale)

    def rule(self, *rules: str) -> str:
        return str(self.draw(st.sampled_from(rules)))


def conserves(
    dtype: torch.dtype, incoming: list[Relevance], outgoing: list[Relevance], absorbed: Tensor
) -> None:
    before = sum(state.total() for state in incoming)
    after = sum(state.total() for state in outgoing)
    magnitude = torch.maximum(
        torch.stack([state.magnitude() for state in incoming]).sum(0),
        torch.stack([state.magnitude() for state in outgoing]).sum(0),
    )
    for state in outgoing:
        check_finite(*state)
    check_finite(absorbed)
    excess = (before - after - absorbed).abs() - TOLERANCE[dtype] * magnitude
    assert (excess <= 0).all(), f"off by {excess.max().item():.3g} beyond the tolerance"


def check_finite(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is None or tensor.isfinite().all()


@CHECKED
@given(data=st.data())
def test_linear(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    rows = data.draw(st.sampled_from([(), (1,), (9,)]))
    inputs, outputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    x, weight = drawn.input(drawn.batch, *rows, inputs), drawn.weight(outputs, inputs)
    state = drawn.state(drawn.batch, *rows, outputs)
    result = operations.relprop_linear(x, weight, *state, drawn.rule("rap", "rap_conv"))
    conserves(drawn.dtype, [state], [Relevance(*result[:3])], result[3])


@CHECKED
@given(data=st.data())
def test_conv(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    conv = data.draw(st.sampled_from(list(CONVS.values())))
    x = drawn.input(drawn.batch, conv.channels, *conv.size)
    weight = drawn.weight(*conv.weight(drawn.sampler).shape)
    state = drawn.state(*conv.apply(x.float(), weight.float()).shape)
    options = {"rule": drawn.rule("rap", "rap_conv"), "nonnegative": bool((x >= 0).all())}
    result = operations.relprop_conv(x, weight, None, *state, **conv.geometry(), **options)
    conserves(drawn.dtype, [state], [Relevance(*result[:3])], result[3])


@CHECKED
@given(data=st.data())
def test_zbox_conv(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    conv = data.draw(st.sampled_from(list(CONVS.values())))
    x = drawn.input(drawn.batch, conv.channels, *conv.size)
    weight = drawn.weight(*conv.weight(drawn.sampler).shape)
    dims = list(range(1, x.dim()))
    bounds = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    state = drawn.state(*conv.apply(x.float(), weight.float()).shape)
    result = operations.relprop_zbox_conv(x, weight, *bounds, *state, **conv.geometry())
    conserves(drawn.dtype, [state], [Relevance(*result[:3])], result[3])


@CHECKED
@given(data=st.data())
def test_zbox_linear(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    inputs, outputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    x, weight = drawn.input(drawn.batch, inputs), drawn.weight(outputs, inputs)
    state = drawn.state(drawn.batch, outputs)
    result = operations.relprop_zbox_linear(x, weight, x.amin(), x.amax(), *state)
    conserves(drawn.dtype, [state], [Relevance(*result[:3])], result[3])


@CHECKED
@given(data=st.data())
def test_first_linear(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    inputs, outputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    x, weight = drawn.input(drawn.batch, inputs), drawn.weight(outputs, inputs)
    bias = data.draw(st.sampled_from([None, drawn.weight(outputs)]))
    score = drawn.state(drawn.batch, 1).values[:, 0]
    target = torch.arange(drawn.batch) % outputs
    rule = drawn.rule("absolute", "author")
    result = operations.relprop_first_linear(x, weight, bias, target, score, rule)
    conserves(drawn.dtype, [Relevance(score[:, None])], [Relevance(*result[:3])], result[3])


@CHECKED
@given(data=st.data())
def test_pools(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    pool = data.draw(st.sampled_from(list(POOLS.values())))
    x = drawn.input(drawn.batch, 3, *pool.size)
    state = drawn.state(drawn.batch, 3, *pool.output_size())
    window = pool.kernel, pool.stride, pool.padding
    result = operations.relprop_max_pool(x, *state, *window, pool.dilation, pool.ceil_mode)
    conserves(drawn.dtype, [state], [Relevance(*result[:3])], result[3])
    if set(pool.dilation) == {1}:
        result = operations.relprop_avg_pool(x, *state, *window, pool.ceil_mode)
        conserves(drawn.dtype, [state], [Relevance(*result[:3])], result[3])


@CHECKED
@given(data=st.data())
def test_adaptive_pools(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    size, output = data.draw(st.sampled_from(ADAPTIVE))
    x, state = drawn.input(drawn.batch, 3, *size), drawn.state(drawn.batch, 3, *output)
    for name in ("relprop_adaptive_max_pool", "relprop_adaptive_avg_pool"):
        result = getattr(operations, name)(x, *state)
        conserves(drawn.dtype, [state], [Relevance(*result[:3])], result[3])


@CHECKED
@given(data=st.data())
def test_add(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    shape = drawn.batch, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    a, b, state = drawn.input(*shape), drawn.input(*shape), drawn.state(*shape)
    rule = drawn.rule("absolute", "ratio")
    values_a, values_b, scale, absorbed = operations.relprop_add(a, b, *state, rule)
    outgoing = [Relevance(values_a, None, scale), Relevance(values_b, None, scale)]
    conserves(drawn.dtype, [state], outgoing, absorbed)


@CHECKED
@given(data=st.data())
def test_merge_and_apply_shift(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    shape = drawn.batch, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    a, b = drawn.state(*shape), drawn.state(*shape)
    none = torch.zeros(drawn.batch, dtype=torch.float64)
    values, scale = operations.merge(*a, *b)
    conserves(drawn.dtype, [a, b], [Relevance(values, None, scale)], none)
    conserves(drawn.dtype, [a], [Relevance(operations.apply_shift(*a))], none)


@CHECKED
@given(data=st.data())
def test_gate(operations: ModuleType, data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    shape = drawn.batch, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    x, gradient = drawn.input(*shape), drawn.input(*shape)
    total, scale = drawn.sampler.pending()
    state = Relevance(*operations.gate(x, gradient, total, scale))
    check_finite(*state)
    met = (state.values != 0).flatten(1).any(1)
    wanted = torch.where(met, total * scale, torch.zeros_like(total))
    # Equal contributions that are shifted to 0 leave nothing but their own rounding.
    shifted = Relevance(state.values, None, state.scale)
    allowed = 1e-12 * torch.maximum(shifted.magnitude(), wanted.abs())
    assert ((state.total() - wanted).abs() <= allowed).all()


EXTREMES = {
    torch.float64: [0.0, 5e-324, 1e-300, 1e-38, 1.0, 1e30, 1e300],
    torch.float32: [0.0, 1e-45, 1e-38, 1.0, 1e30, 3e38],
    torch.bfloat16: [0.0, 1e-40, 1e-38, 1.0, 1e30, 3e38],
    torch.float16: [0.0, 6e-8, 6e-5, 1.0, 6e4],
}


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("name", SAMPLES)
def test_finite_at_the_edges_of_the_dtype(
    operations: ModuleType, name: str, dtype: torch.dtype
) -> None:
    for first, others in itertools.product(EXTREMES[dtype], repeat=2):
        arguments = []
        for value in SAMPLES[name](Sampler(dtype, batch=2)):
            size = others if arguments else first
            is_data = isinstance(value, Tensor) and value.dtype == dtype and value.dim() > 1
            arguments.append(value.sign() * size if is_data else value)
        result = getattr(operations, name)(*arguments)
        check_finite(*(result if isinstance(result, tuple) else (result,)))


OTHER_RULES = {
    "relprop_first_linear": ("absolute", "author"),
    "relprop_avg_pool": ("absolute", "ratio", "positive"),
    "relprop_adaptive_avg_pool": ("absolute", "ratio", "positive"),
    "relprop_add": ("absolute", "ratio", "positive"),
}


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("name", SAMPLES)
@settings(CHECKED, max_examples=12)
@given(data=st.data())
def test_finite_for_finite_input(
    operations: ModuleType, name: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    magnitudes = st.sampled_from(EXTREMES[dtype])
    arguments = []
    for value in SAMPLES[name](Sampler(dtype, batch=2)):
        changed = value
        if isinstance(value, Tensor) and value.dtype == dtype and value.dim() > 1:
            sizes = [data.draw(magnitudes), data.draw(magnitudes)]
            generator = torch.Generator("cpu").manual_seed(len(arguments))
            pick = torch.rand(value.shape, generator=generator, device="cpu").to(value.device)
            changed = torch.where(pick < 0.5, *(torch.full_like(value, s) for s in sizes))
            changed = torch.where(value < 0, -changed, changed)
        elif isinstance(value, Tensor) and value.dtype == torch.float64 and value.dim() == 1:
            # A pending shift; the scale, a power of two, stays.
            changed = value * data.draw(magnitudes) if (value <= 0).any() else value
        arguments.append(changed)
    if name.startswith("relprop_zbox"):
        arguments[2], arguments[3] = arguments[0].amin(), arguments[0].amax()
    if arguments[-1] == "absolute":
        arguments[-1] = data.draw(st.sampled_from(OTHER_RULES[name]))
    result = getattr(operations, name)(*arguments)
    check_finite(*(result if isinstance(result, tuple) else (result,)))
    for state in states(name, result):
        assert state.scale is None or (state.scale > 0).all()
        check_finite(operations.apply_shift(*state))
