"""Random networks of every operation that has a rule: every method, against itself in every way.

``RAPKERNELS_FUZZ=5000`` draws that many networks at random in place of the few that are always the
same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import rapkernels as rk
from rapkernels.composites import COMPOSITES
from rapkernels.decompose import _DECOMPOSITIONS
from rapkernels.errors import ArgumentError, UnsupportedOperationError
from rapkernels.rules.registry import _BUILT_IN
from tests import (  # noqa: F401
    random_steps,
    random_steps_any,
    random_steps_choices,
    random_steps_tokens,
)
from tests.random_networks import KINDS, Network, networks

pytestmark = [pytest.mark.cpu_only, pytest.mark.usefixtures("one_thread")]

# What no step puts into a graph, and why.
NOT_DRAWN = {
    "aten.lift_fresh_copy.default": "is of constants in the code of a model",
    "aten.native_group_norm.default": "is for one memory layout; models call group_norm",
    "aten.relu6.default": "torch makes hardtanh of it",
    "aten.split.sizes": "torch makes split_with_sizes of it",
    "aten.squeeze.default": "the export of a model makes squeeze.dims of it",
}
EXAMPLES = int(os.environ.get("RAPKERNELS_FUZZ", "0"))
CHECKED = settings(
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    max_examples=EXAMPLES or 180,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)

METHODS: dict[str, Callable[..., Any]] = {
    "rap": rk.RAP,
    "paper": partial(rk.RAP, variant="paper"),
    "author": partial(rk.RAP, variant="author"),
    "lrp": rk.LRP,
    "equilibrium": rk.AttributionEquilibrium,
    "sharing_ratio": rk.SharingRatio,
}
# What methods make of the weights of attention: one of them for each network.
ATTENTION = ("constant", "attnlrp")
# The authors' code doubles or drops relevance.
LOSING = ("author",)
STARTING_AT_LAYERS = ("equilibrium", "sharing_ratio")
# What a method refuses, by the reason that it gives: Sharing Ratio needs the vectors of positions.
REFUSED = {"sharing_ratio": "it is not known which dimensions of its value hold the channels"}
# Where torch takes in-place writes out of a graph itself, it splits softshrink up, and writes
# through unfold by its gradient.
SPLIT_UP = {"aten.sign.default", "aten.unfold_backward.default"}

# Sums of a node's shares, in float64: a few hundred terms, each rounded once. Where terms of both
# signs cancel before they are divided, what is rounded is larger than what is left by as much as
# relevance grows there.
CONSERVED = 1e-11
# Two orders of the same sums differ as inputs and parameters do whose entries were rounded
# otherwise: as much as the map changes with their last digits, of which it is tried what a few of
# them do. Those of the parameters count where a sample is 0: what cancels there is rounding.
SAME = 1e-11
NUDGE = 1e-14
NUDGED = 1e3
# Maps that change by more have no digits left to compare.
UNSTABLE = 1e-6
# Outputs below this are what sums that cancel leave: rounding.
ROUNDING = 1e-9


def growth(report: Any) -> Tensor:
    """(N,): the largest sum of absolute relevance on the way, over that at the start."""
    magnitudes = torch.stack([row.magnitude for row in report.rows])
    return magnitudes.amax(0) / magnitudes[0].clamp(min=torch.finfo(torch.float64).tiny)


def explainer_of(method: str, network: Network, backend: str = "native") -> Any:
    """A method's explainer: from the output where no layer will do."""
    attention = ATTENTION[network.seed // len(COMPOSITES) % len(ATTENTION)]
    if method == "lrp":
        composite = sorted(COMPOSITES)[network.seed % len(COMPOSITES)]
        return rk.LRP(network.model, composite, backend=backend, attention=attention)
    build = partial(METHODS[method], network.model, backend=backend)
    if method != "sharing_ratio":
        build = partial(build, attention=attention)
    if method not in STARTING_AT_LAYERS:
        return build()
    try:
        found = build()
        found.plan(network.batch(2))
    except ArgumentError as error:
        if "no activation function after a convolution" not in str(error):
            raise
        return build(layer="")
    except UnsupportedOperationError:
        pass  # The caller looks at the reason.
    return found


def refuses(method: str, error: UnsupportedOperationError) -> bool:
    """Whether all reasons are those that torch or the method has."""
    return all(
        node.operation in SPLIT_UP or (method in REFUSED and REFUSED[method] in node.reason)
        for node in error.nodes
    )


def nudged(value: Tensor, generator: torch.Generator) -> Tensor:
    """With other last digits."""
    if not value.is_floating_point():
        return value
    digits = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return (value * (1 + NUDGE * digits)).to(value.dtype)


def check(network: Network, method: str) -> str:
    """Everything that is promised of a method; returns how far the maps could be compared."""
    x = network.batch(3)
    with torch.no_grad():
        outputs = network.model(x)
    if outputs.abs().amax() < ROUNDING:
        return "outputs are rounding errors"
    target = torch.arange(3) % outputs.shape[1]
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    explainer = explainer_of(method, network)
    try:
        relevance, report = explainer.attribute(x, target, return_report=True)
    except UnsupportedOperationError as error:
        if refuses(method, error):
            return "refused"
        raise
    assert relevance.isfinite().all()
    for name, value in network.model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} has changed"
    if not report.rows:
        return "nothing on the way"
    grown = growth(report)
    if method not in LOSING:
        for row in report.rows:
            assert not row.non_finite.any(), f"{row.node} is not finite"
            excess = row.error - CONSERVED * grown.clamp(min=1)
            assert (excess <= 0).all(), f"{row.node} ({row.rule}) is off\n{report}"
    largest = float(torch.stack([row.magnitude for row in report.rows]).amax())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.model.state_dict().values():
            value.copy_(nudged(value, generator))
    rounded = explainer.attribute(nudged(x, generator), target)
    network.model.load_state_dict(before)
    change = NUDGED * float((rounded - relevance).abs().max())
    if change > UNSTABLE * largest:
        return "unstable"
    tolerance = SAME * largest * max(1.0, float(grown.max())) + change
    same = partial(torch.testing.assert_close, rtol=0, atol=tolerance)
    reference = explainer_of(method, network, "reference").attribute(x, target)
    same(relevance, reference, msg="native is not the reference: {}".format)
    many = explainer.attribute_targets(x, [0, 2])
    for place, single in enumerate((0, 2)):
        alone = explainer.attribute(x, single)
        same(many[place], alone, msg="many targets are not single ones: {}".format)
    alone = explainer.attribute(x[1:2], int(target[1]))
    same(relevance[1:2], alone, msg="a row is not the sample alone: {}".format)
    return "compared"


@pytest.mark.filterwarnings("ignore")
@CHECKED
@given(network=networks())
def test_random_networks(native: ModuleType, network: Network) -> None:  # noqa: ARG001
    for method in METHODS:
        check(network, method)


def test_every_operation_of_the_table_is_drawn() -> None:
    drawn = {name for kinds in KINDS.values() for kind in kinds for name in kind.operations}
    table = {*_BUILT_IN, *_DECOMPOSITIONS}
    missing = sorted(table - drawn - set(NOT_DRAWN))
    assert not missing, (
        f"draw them in tests/random_steps*.py, or say in NOT_DRAWN why not: {missing}"
    )
    assert not sorted((drawn | set(NOT_DRAWN)) - table)
