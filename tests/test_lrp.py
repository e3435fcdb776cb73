"""LRP: gradient times input, which layer gets which rule, conservation, settings."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import rapkernels as rk
from rapkernels.composites import (
    COMPOSITES,
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    WSquare,
    ZBox,
    ZPlus,
)
from rapkernels.errors import ArgumentError, ArgumentTypeError
from tests.networks import MODERN, NETWORKS, conv, images, network, seeded

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"geometry", "affine", *MODERN}))
def test_gradient_times_input(name: str, backend: Any) -> None:
    """LRP-0 is input times gradient where activations are ReLUs (not those clipped above or
    below at values that are not 0, nor what adds constants to the input), and nothing is held
    constant."""
    model, x = network(name), images()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    expected = gradient * x
    relevance = rk.LRP(model, "GradientTimesInput", backend).attribute(x, 1)
    scale = float(expected.abs().amax())
    torch.testing.assert_close(relevance, expected, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_step_conserves_what_biases_leave(name: str, composite: str, backend: Any) -> None:
    explainer = rk.LRP(network(name), composite, backend)
    relevance, report = explainer.attribute(images(), 1, return_report=True)
    assert torch.isfinite(relevance).all()
    assert float(report.worst().error.max()) < 1e-9


def test_without_biases_nothing_is_absorbed(backend: Any) -> None:
    rules = Composite(ZPlus(0.0, bias=False), Epsilon(0.0, bias=False), stabilizer=0.0)
    _, report = rk.LRP(network("shared"), rules, backend).attribute(images(), 1, return_report=True)
    assert float(max(row.absorbed.abs().max() for row in report.rows)) < 1e-12


def rules_of(composite: Composite, name: str = "layers") -> dict[str, str]:
    rows = rk.LRP(network(name), composite).plan(images()).rows
    return {
        row.module: row.rule for row in rows if row.operation.startswith(("aten.conv", "aten.lin"))
    }


def test_which_layer_gets_which_rule() -> None:
    assert rules_of(Composite(ZPlus(), Gamma())) == {"1": "z_plus", "7": "gamma", "10": "gamma"}
    assert rules_of(Composite(ZPlus(), Gamma(), first=Flat(), last=AlphaBeta())) == {
        "1": "flat",
        "7": "gamma",
        "10": "alpha_beta",
    }
    special = Composite(
        ZPlus(),
        Gamma(),
        first=Flat(),
        operations={"aten.linear.default": WSquare()},
        nodes={"7": Epsilon(), "conv2d": ZBox()},
    )
    assert rules_of(special) == {"1": "z_box", "7": "epsilon", "10": "w_square"}


def test_a_module_path_names_all_layers_in_it() -> None:
    composite = Composite(nodes={"b": ZPlus()})
    assert rules_of(composite, "shared") == {"a": "epsilon", "b": "z_plus", "fc": "epsilon"}


def test_the_most_specific_key_wins() -> None:
    """A node, then the path of the innermost module, then patterns in their order."""
    nodes = {
        "b*": AlphaBeta(),
        "blocks.?": ZPlus(),
        "*": Gamma(),
        "blocks.1": Flat(),
        "blocks.1.0": Epsilon(),
    }
    expected = {
        "stem": "gamma",
        "blocks.0.0": "alpha_beta",
        "blocks.0.1": "alpha_beta",
        "blocks.1.0": "epsilon",
        "blocks.1.1": "flat",
    }
    assert blocks_rules(nodes) == expected
    assert blocks_rules({**nodes, "conv2d_3": WSquare()})["blocks.1.0"] == "w_square"
    reordered = {"blocks.?": nodes.pop("blocks.?"), **nodes}
    assert blocks_rules(reordered) == expected | {"blocks.0.0": "z_plus", "blocks.0.1": "z_plus"}
    # All of the model, and a key wins against the first and the last layer.
    assert set(blocks_rules({"": ZPlus()}, first=Flat()).values()) == {"z_plus"}
    assert blocks_rules({"blocks.*": ZPlus()}, first=Flat())["stem"] == "flat"


def blocks() -> torch.nn.Module:
    def build() -> torch.nn.Module:
        model = torch.nn.Sequential()
        model.stem = conv(3)
        model.blocks = torch.nn.Sequential(
            *(torch.nn.Sequential(conv(), conv(), torch.nn.ReLU()) for _ in range(2))
        )
        return model

    return seeded(build)


def blocks_rules(nodes: dict[str, Any], **settings: Any) -> dict[str, str]:
    rows = rk.LRP(blocks(), Composite(nodes=nodes, **settings)).plan(images()).rows
    return {row.module: row.rule for row in rows if row.operation.startswith("aten.conv")}


@pytest.mark.parametrize(
    "key", ["blocks.2", "stam", "blocks.*.7", "relu_default", "blocks.0.2", "[", "block"]
)
def test_a_key_that_names_no_layer(key: str) -> None:
    explainer = rk.LRP(blocks(), Composite(nodes={"stem": ZPlus(), key: ZPlus()}))
    expected = r"^nodes of the composite must name convolutions or linear layers.* got "
    for call in (explainer.plan, explainer.attribute):
        with pytest.raises(ArgumentError, match=expected + re.escape(repr(key)) + r" \(for exam"):
            call(images())


def test_the_order_of_patterns_tells_composites_apart() -> None:
    """Programs are kept by them, on the same model."""
    model, x = blocks(), images()
    first = Composite(nodes={"blocks.*": ZPlus(), "*.0.*": Gamma()})
    second = Composite(nodes={"*.0.*": Gamma(), "blocks.*": ZPlus()})
    assert first != second
    same = Composite(nodes={"blocks.*": ZPlus(), "*.0.*": Gamma()})
    assert first == same
    assert hash(first) == hash(same)
    assert first != "EpsilonPlus"
    rules = [
        {row.module: row.rule for row in rk.LRP(model, composite).plan(x).rows}
        for composite in (first, second)
    ]
    assert [found["blocks.0.1"] for found in rules] == ["z_plus", "gamma"]


def test_a_single_layer_is_the_first_one() -> None:
    assert rules_of(rk.composites.EpsilonPlusFlat(), "linear alone") == {"1": "flat"}


def test_equal_composites_share_a_program() -> None:
    first, second = rk.composites.EpsilonPlusFlat(), rk.composites.EpsilonPlusFlat()
    assert first == second
    assert hash(first) == hash(second)
    assert first != rk.composites.EpsilonPlusFlat(epsilon=1e-3)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Epsilon(-1.0), ArgumentError, "epsilon must be finite and at least 0, got -1.0"),
        (lambda: Epsilon("0"), ArgumentTypeError, "epsilon must be a number, got str"),
        (lambda: Gamma(float("nan")), ArgumentError, "gamma must be finite"),
        (lambda: AlphaBeta(2.0, 0.5), ArgumentError, "alpha - beta must be 1, got alpha 2.0"),
        (lambda: AlphaBeta(-1.0, -2.0), ArgumentError, "alpha must be finite and at least 0"),
        (lambda: ZBox(0.0), ArgumentError, "low and high must be given both or neither"),
        (lambda: ZBox(1.0, 0.0), ArgumentError, "low must not be above high, got 1.0 and 0.0"),
        (lambda: Composite(conv=ZPlus), ArgumentTypeError, "conv must be a rule such as"),
        (lambda: Composite(nodes=[]), ArgumentTypeError, "nodes must be a dict of rules, got list"),
        (lambda: Composite(nodes={1: ZPlus()}), ArgumentTypeError, "nodes must have strings as k"),
        (lambda: Composite(nodes={"a": 1}), ArgumentTypeError, r"nodes\['a'\] must be a rule"),
        (lambda: Composite(stabilizer=-1.0), ArgumentError, "stabilizer must be finite"),
        (lambda: rk.LRP(network("shared"), "ZPlus"), ArgumentError, "composite must be one of"),
        (lambda: rk.LRP(network("shared"), ZPlus()), ArgumentTypeError, "composite must be a name"),
    ],
)
def test_errors(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
