"""Rules that a caller chooses for parts of a model, and what stands in for a missing one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.errors import (
    ArgumentError,
    ArgumentTypeError,
    LinearisedWarning,
    UnsupportedOperationError,
)
from rapkernels.relevance import Relevance
from rapkernels.rules import Context
from tests.networks import conv, images, seeded

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")

EXPLAINERS: dict[str, Callable[..., Any]] = {
    "rap": rk.RAP,
    "lrp": rk.LRP,
    "equilibrium": rk.AttributionEquilibrium,
    "sharing_ratio": rk.SharingRatio,
}


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Doubled(rk.Rule):
    """Sends back twice what arrives."""

    name = "doubled"

    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        return Relevance(2 * ctx.materialise(relevance))


def waves() -> nn.Module:
    def build() -> nn.Module:
        blocks = [nn.Sequential(conv(4), Sine()) for _ in range(2)]
        stem = nn.Sequential(conv(3), nn.ReLU())
        return nn.Sequential(stem, *blocks, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    return seeded(build)


def sines() -> nn.Module:
    """Without an activation function that the library knows."""
    return seeded(
        lambda: nn.Sequential(
            nn.Sequential(conv(3), Sine()),
            nn.Sequential(conv(4), Sine()),
            nn.Flatten(),
            nn.Linear(144, 5),
        )
    )


def rules_of(explainer: Any) -> dict[str, str]:
    return {row.node: row.rule for row in explainer.plan(images()).rows}


@pytest.mark.parametrize("method", EXPLAINERS)
def test_modules_nodes_and_patterns(method: str) -> None:
    model, x = waves(), images()
    make = EXPLAINERS[method]
    with pytest.raises(UnsupportedOperationError, match=r"give the explainer rules="):
        make(model).attribute(x, 1)
    rk.register_rule("aten.sin.default", "identity")
    try:
        expected = make(model).attribute(x, 1)
    finally:
        rk.unregister_rule("aten.sin.default")
    for rules in (
        {"1.1": "identity", "2.1": "identity"},
        {"sin": "identity", "sin_1": "identity"},
        {"[12].1": "identity"},
        {"[12].1": "structure", "1.1": "identity", "sin_1": "identity"},
    ):
        assert torch.equal(make(model, rules=rules).attribute(x, 1), expected)


def test_the_most_specific_choice_wins() -> None:
    model = waves()
    chosen = {"*.1": "identity", "2.1": Doubled, "sin": Doubled}
    found = rules_of(rk.RAP(model, rules=chosen))
    assert (found["sin"], found["sin_1"]) == ("doubled", "doubled")
    found = rules_of(rk.RAP(model, rules={"*.1": "identity", "2.*": Doubled, "1.1": Doubled}))
    assert (found["sin"], found["sin_1"]) == ("doubled", "identity")


def test_a_choice_comes_before_the_method_and_the_registered_rule() -> None:
    model = seeded(lambda: nn.Sequential(conv(3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))
    x = images()
    once = rk.RAP(model).attribute(x, 1)
    twice = rk.RAP(model, rules={"1": Doubled}).attribute(x, 1)
    torch.testing.assert_close(twice, 2 * once)
    rk.register_rule("aten.relu.default", "identity")
    try:
        torch.testing.assert_close(rk.RAP(model, rules={"1": Doubled}).attribute(x, 1), twice)
    finally:
        rk.unregister_rule("aten.relu.default")
    # Nothing of it stays: programs are kept by their choices.
    torch.testing.assert_close(rk.RAP(model).attribute(x, 1), once)
    assert torch.equal(rk.attribute(model, x, 1, rules={"1": Doubled}), twice)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        (["sin"], ArgumentTypeError, r'^rules must be a dict such as \{"features\.3"'),
        ({3: "identity"}, ArgumentTypeError, "^rules must have names of nodes or paths"),
        ({"1.1": "pass"}, ArgumentError, r"^rules\['1\.1'\] must be \"identity\" or \"structure\""),
        ({"1.1": nn.ReLU}, ArgumentTypeError, r"^rules\['1\.1'\] must be a name or a subclass"),
    ],
)
def test_errors(rules: Any, error: type[Exception], message: str) -> None:
    for make in EXPLAINERS.values():
        with pytest.raises(error, match=message):
            make(waves(), rules=rules)


@pytest.mark.parametrize(
    ("key", "close"), [("3.1", "1.1"), ("sine", "sin"), ("*.7", "0.0"), ("conv", "conv2d")]
)
def test_a_key_that_names_nothing(key: str, close: str) -> None:
    for make in EXPLAINERS.values():
        explainer = make(waves(), rules={"1.1": "identity", key: "identity"}, strict=False)
        expected = rf"^rules must name nodes or modules that compute.*, got '{re.escape(key)}' "
        with pytest.raises(ArgumentError, match=rf"{expected}\(for example .*'{close}'"):
            explainer.plan(images())


@pytest.mark.parametrize("method", ["equilibrium", "sharing_ratio"])
def test_the_default_start_sees_what_was_chosen(method: str) -> None:
    """Its activation function may be one that only the caller knows, its convolution too."""
    model, x, make = sines(), images(), EXPLAINERS[method]
    with pytest.raises(ArgumentError, match=r"^layer must be given"):
        make(model).attribute(x, 1)
    for rules in ({"*.1": "identity"}, {"sin": "identity", "1.1": "identity"}):
        found = make(model, rules=rules).attribute(x, 1)
        assert torch.equal(found, make(model, layer="1", rules=rules).attribute(x, 1))
    # Doubled is no activation function.
    earlier = {"0.1": "identity", "1.1": Doubled}
    expected = make(model, layer="0", rules=earlier).attribute(x, 1)
    assert torch.equal(make(model, rules=earlier).attribute(x, 1), expected)
    # Where a wrong key is why there is no start, it is what the error is about.
    with pytest.raises(ArgumentError, match=r"^rules must name .* got 'sine'"):
        make(model, rules={"sine": "identity"}).attribute(x, 1)


def test_repr_names_what_was_chosen() -> None:
    rules = {"1.1": "identity", "sin_1": Doubled}
    expected = {
        "rap": "RAP(Sequential, variant='default', bounds=None, backend='auto'",
        "equilibrium": "AttributionEquilibrium(Sequential, layer=None, ratio=2.0, backend='auto'",
        "sharing_ratio": "SharingRatio(Sequential, layer=None, start='gradient', backend='auto'",
    }
    for method, begin in expected.items():
        make = EXPLAINERS[method]
        assert repr(make(waves())) == f"{begin})"
        shown = "rules={'1.1': 'identity', 'sin_1': Doubled}, strict=False)"
        assert repr(make(waves(), rules=rules, strict=False)) == f"{begin}, {shown}"
    assert repr(rk.LRP(waves(), strict=False)).endswith(", backend='auto', strict=False)")


def test_a_rule_that_does_not_fit_says_so() -> None:
    with pytest.raises(UnsupportedOperationError, match="needs an output shaped like the input"):
        rk.RAP(waves(), rules={"5": "identity", "*.1": "identity"}).attribute(images(), 1)


@pytest.mark.parametrize("method", EXPLAINERS)
def test_linearised(method: str) -> None:
    model, x = waves(), images()
    explainer = EXPLAINERS[method](model, strict=False)
    with pytest.warns(LinearisedWarning, match=r"\(strict=False\): aten\.sin\.default$"):
        relevance, report = explainer.attribute(x, 1, return_report=True)
    assert bool(torch.isfinite(relevance).all())
    assert float(report.worst().error.max()) < 1e-12
    assert [row.rule for row in report.rows].count("linearised") == 2
    together = explainer.attribute_targets(x, [1, 3])
    torch.testing.assert_close(together[0], relevance)
    torch.testing.assert_close(together[1], explainer.attribute(x, 3))


def test_linearised_is_gradient_times_input_over_the_output() -> None:
    model = seeded(lambda: nn.Sequential(conv(3), Sine(), nn.Flatten(), nn.Linear(144, 5)))
    with pytest.warns(LinearisedWarning):
        _, layers = rk.RAP(model, strict=False).attribute(images(), 1, layers=["0", "1"])
    z = model.get_submodule("0")(images()).detach()
    expected = layers["1"] * z * z.cos() / z.sin()
    torch.testing.assert_close(layers["0"], expected)


def test_strict_is_the_default_and_nothing_is_warned_of_without_need() -> None:
    model = seeded(lambda: nn.Sequential(conv(3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LinearisedWarning)
        loose = rk.RAP(model, strict=False).attribute(images(), 1)
    assert torch.equal(loose, rk.RAP(model).attribute(images(), 1))
