"""Values that cost a pass are computed again on the way back: less is kept, results are equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from bench.profiled import counts
from rapkernels.findings import Findings
from rapkernels.inputs import Inputs
from rapkernels.walker import Walk
from tests.explainers import METHODS, explainer
from tests.networks import NETWORKS, conv, images, network, norm, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def _keeps_all(_: Walk, __: Any, saved: tuple[Any, ...], ___: Any) -> tuple[Any, ...]:
    return saved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_results_are_those_of_kept_values(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = explainer(method, network(name, torch.float32), name)
    x = images(dtype=torch.float32)
    again = made.attribute_targets(x, [0, 2])
    monkeypatch.setattr(Walk, "_without_remade", _keeps_all)
    assert torch.equal(again, made.attribute_targets(x, [0, 2]))


def _chain() -> nn.Module:
    layers = [layer for _ in range(6) for layer in (conv(), norm(), nn.ReLU())]
    return nn.Sequential(conv(3), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.cpu_only
def test_half_of_a_chain_of_layers_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(64)
    made = rk.RAP(seeded(_chain), backend="reference")
    made.attribute(x)
    again = counts(lambda: made.attribute(x)).peak
    monkeypatch.setattr(Walk, "_without_remade", _keeps_all)
    # Of the z and x of six layers the z are kept, and a layer's x is there while it is its turn.
    one = 64 * 4 * 36 * x.element_size()
    assert counts(lambda: made.attribute(x)).peak - again >= 4 * one


class _Branches(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(3), nn.ReLU(), conv(), nn.Sigmoid(), conv(), nn.ReLU())
        self.branches = nn.ModuleList(conv() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([branch(x) for branch in self.branches], 1).flatten(1)


@pytest.mark.parametrize(("readers", "remade"), [(2, {"relu_1"}), (3, set())])
def test_what_many_read_or_what_is_dear_is_kept(readers: int, remade: set[str]) -> None:
    """Each of many readers would compute a value anew; the first layer keeps no z for its ReLU."""
    x = images()
    made = rk.RAP(seeded(lambda: _Branches(readers)))
    program = made._program(Inputs.of(made.model, x), Findings(x.device))
    assert {"relu", "sigmoid", "relu_1"} <= program.graph.nodes.keys()
    assert program.again.keys() & {"relu", "sigmoid", "relu_1"} == remade
