"""The rules without shift: native operations against the reference, as test_ops has RAP's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from rapkernels.testing import CONVS, LAYOUTS, Conv, Sampler, convert
from tests.test_ops import DTYPES, FLAT_SIZES, agree, conv_arguments

# Stabilizers that keep the quotients of sums that nearly cancel within the tolerances of test_ops.
RULES: list[tuple[str, list[float]]] = [
    ("absolute", []),
    ("epsilon", [0.25]),
    ("gamma", [0.25, 0.125]),
    ("alpha_beta", [2.0, 1.0, 0.125]),
    ("alpha_beta", [1.0, 0.0, 0.125]),
    ("alpha_beta", [1.5, 0.5, 0.0]),
]
IDS = [" ".join([rule, *map(str, parameters)]) for rule, parameters in RULES]


def rule_arguments(
    conv: Conv,
    sampler: Sampler,
    rule: tuple[str, list[float]],
    z_given: bool = False,
    bias: bool = True,
) -> tuple[Any, ...]:
    arguments = conv_arguments(conv, sampler, rule[0], z_given, sampler.batch)
    return *arguments, sampler.normal(conv.outputs) if bias else None, rule[1]


@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("rule", RULES, ids=IDS)
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_conv_geometry(
    native: ModuleType, conv: Conv, rule: tuple[str, list[float]], signed: bool
) -> None:
    layouts = list(LAYOUTS.values())
    for index, dtype in enumerate(DTYPES):
        for z_given in (False, True):
            sampler = Sampler(dtype, seed=2, signed=signed, batch=2)
            arguments = rule_arguments(conv, sampler, rule, z_given, bias=index % 2 == 0)
            layout = layouts[(index + z_given) % len(layouts)]
            agree(native, "relprop_conv", convert(arguments, layout), dtype)


@pytest.mark.parametrize("conv", ["1d", "2d wide", "3d grouped"])
def test_nonnegative_promise_changes_nothing(native: ModuleType, conv: str) -> None:
    for rule in RULES:
        sampler = Sampler(batch=2, signed=False)
        arguments = list(rule_arguments(CONVS[conv], sampler, rule))
        arguments[-3] = False
        agree(native, "relprop_conv", tuple(arguments), torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_linear_sizes(
    native: ModuleType, rule: tuple[str, list[float]], dtype: torch.dtype
) -> None:
    for rows, inputs, outputs in [(1, 65, 17), (3, 16, 1025), (5, 513, 31), (33, 33, 16)]:
        for bias in (False, True):
            sampler = Sampler(dtype, seed=rows, signed=rows % 2 == 1, batch=rows)
            x, weight = sampler.activation(rows, 2, inputs), sampler.normal(outputs, inputs)
            state = sampler.relevance(rows, 2, outputs), *sampler.pending()
            options = rule[0], not sampler.signed, sampler.normal(outputs) if bias else None
            agree(native, "relprop_linear", (x, weight, *state, *options, rule[1]), dtype)


@pytest.mark.parametrize("size", FLAT_SIZES)
def test_sizes_of_the_quotient(native: ModuleType, size: int) -> None:
    """Outputs around the vector width, a run and a task, with a bias that changes on the way."""
    for rule in RULES[1:5]:
        for layout in (LAYOUTS["contiguous"], LAYOUTS["channels_last"]):
            sampler = Sampler(torch.float32, seed=size, signed=False, batch=1)
            conv = Conv(2, 3, (size, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
            arguments = rule_arguments(conv, sampler, rule)
            agree(native, "relprop_conv", convert(arguments, layout), torch.float32)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_guarded_division(native: ModuleType, name: str) -> None:
    """Without stabilizer an output without messages hands nothing on, and all of it is absorbed."""
    x, weight = torch.zeros(2, 3).double(), torch.ones(4, 3).double()
    relevance = torch.arange(8.0).view(2, 4).double()
    for rule, parameters in [
        ("absolute", []),
        ("epsilon", [0.0]),
        ("gamma", [0.25, 0.0]),
        ("alpha_beta", [2.0, 1.0, 0.0]),
        ("alpha_beta", [1.0, 0.0, 0.0]),
    ]:
        if name == "linear":
            result = native.relprop_linear(
                x, weight, relevance, None, None, rule, False, None, parameters
            )
        else:
            result = native.relprop_conv(
                x[..., None],
                weight[..., None],
                None,
                relevance[..., None],
                rule=rule,
                parameters=parameters,
            )
        assert not result[0].any()
        assert not result[1].any()
        assert result[3].tolist() == [6.0, 22.0]


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_empty_batch(native: ModuleType, rule: tuple[str, list[float]]) -> None:
    sampler = Sampler(batch=0)
    agree(native, "relprop_conv", rule_arguments(CONVS["2d"], sampler, rule), torch.float64)
    x, weight = sampler.activation(0, 17), sampler.normal(9, 17)
    state = sampler.relevance(0, 9), *sampler.pending()
    arguments = x, weight, *state, rule[0], False, sampler.normal(9), rule[1]
    agree(native, "relprop_linear", arguments, torch.float64)


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_large_odd_sizes(native: ModuleType, rule: tuple[str, list[float]]) -> None:
    sampler = Sampler(torch.float32, batch=1, signed=False)
    conv = Conv(5, 7, (127, 129), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    agree(native, "relprop_conv", rule_arguments(conv, sampler, rule), torch.float32)
