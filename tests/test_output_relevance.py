"""What is sent back: the logit, ones, or what the caller gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.methods.output import OutputExplainer
from tests.networks import NETWORKS, drawn, images, network

METHODS: dict[str, Callable[..., OutputExplainer]] = {
    "rap": rk.RAP,
    "rap paper": functools.partial(rk.RAP, variant="paper"),
    "rap author": functools.partial(rk.RAP, variant="author"),
    "EpsilonPlusFlat": rk.LRP,
    "EpsilonAlpha2Beta1": functools.partial(rk.LRP, composite="EpsilonAlpha2Beta1"),
}
pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


@pytest.mark.parametrize("method", METHODS)
def test_ones_are_the_map_over_the_logit(method: str, backend: Any) -> None:
    """Every rule is positively homogeneous; with positive logits the maps are proportional."""
    model, x = network("shared"), images()
    target = model(x).argmax(1)
    logit = model(x).amax(1).detach()
    assert bool((logit > 0).all())
    explainer = METHODS[method](model, backend=backend)
    ones = explainer.attribute(x, target, output_relevance="ones")
    expected = explainer.attribute(x, target) / logit[:, None, None, None]
    torch.testing.assert_close(ones, expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "rap author"])
def test_a_one_hot_tensor_is_ones(name: str, method: str, backend: Any) -> None:
    model, x = network(name), images()
    explainer = METHODS[method](model, backend=backend)
    given = torch.zeros_like(model(x)).detach()
    given[0, 1], given[1, 3] = 1, 1
    relevance = explainer.attribute(x, output_relevance=given)
    expected = explainer.attribute(x, [1, 3], output_relevance="ones")
    scale = float(expected.abs().amax())
    torch.testing.assert_close(relevance, expected, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("method", METHODS)
def test_conserves_what_is_given(method: str, backend: Any) -> None:
    model, x = network("residual"), images()
    given = drawn(2, 5, seed=4).double()
    explainer = METHODS[method](model, backend=backend)
    _, report = explainer.attribute(x, output_relevance=given, return_report=True)
    torch.testing.assert_close(report.score, given.sum(1))
    if method != "rap author":  # it doubles where inputs are signed
        assert float(report.worst().error.max()) < 1e-9


def test_the_first_step_at_several_outputs(backend: Any) -> None:
    """Each output's relevance is shared by absolute influence: Eq. 6 for each of them."""
    model, x = network("linear alone"), images()
    given = drawn(2, 5, seed=4).double()
    weight = model[1].weight.detach()
    shares = (weight * x.flatten(1)[:, None]).abs()
    expected = torch.einsum("no,noi->ni", given, shares / shares.sum(2, keepdim=True))
    relevance = rk.RAP(model, backend=backend).attribute(x, output_relevance=given)
    torch.testing.assert_close(relevance.flatten(1), expected)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"output_relevance": "zeros"}, ArgumentTypeError, 'must be "logit", "ones" or a tensor'),
        ({"output_relevance": 1.0}, ArgumentTypeError, 'must be "logit", "ones" or a tensor'),
        (
            {"output_relevance": torch.ones(2, 4).double()},
            ArgumentError,
            r"output_relevance must have the shape \[2, 5\]",
        ),
        ({"output_relevance": torch.ones(2, 5)}, ArgumentError, "the dtype torch.float64"),
        (
            {"output_relevance": torch.full((2, 5), torch.nan).double()},
            ArgumentError,
            "output_relevance must be finite",
        ),
        (
            {"output_relevance": torch.ones(2, 5).double(), "target": 1},
            ArgumentError,
            "target must be None where output_relevance is a tensor",
        ),
    ],
)
def test_errors(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        rk.LRP(network("shared")).attribute(images(), **options)
