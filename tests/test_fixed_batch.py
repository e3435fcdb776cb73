"""Models whose export holds for one batch size: samples are found where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.capture import capture
from rapkernels.errors import UnsupportedOperationError
from tests.networks import Function, drawn, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]

# float64, sums of up to a hundred terms.
TOLERANCE = 1e-12
TOKENS = 5
EXPLAINERS: dict[str, Callable[[Any], Any]] = {
    "rap": rk.RAP,
    "lrp": rk.LRP,
    "equilibrium": lambda model: rk.AttributionEquilibrium(model, layer=""),
    "sharing ratio": lambda model: rk.SharingRatio(model, layer=""),
    "attnlrp": lambda model: rk.RAP(model, attention="attnlrp"),
}


def tokens(samples: int) -> Tensor:
    return drawn(samples, TOKENS, 4, seed=2, dtype=torch.float64)


def _attending(pick: Callable[[Tensor], Tensor]) -> nn.Module:
    """Tokens come before samples inside of the attention, and it holds for any batch size."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.a(x))
        y = y + m.heads(y, y, y, need_weights=True)[0]
        return m.fc(pick(y).flatten(1))  # type: ignore[no-any-return]

    return seeded(lambda: Function(run, **_layers()))


def _layers() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"a": nn.Linear(4, 4), "fc": nn.Linear(8, 3)}
    return layers | {"heads": nn.MultiheadAttention(4, 2, batch_first=True)}


def _by_expanded_index(y: Tensor) -> Tensor:
    """Fixes the batch size of an export."""
    index = torch.tensor([3, 0], device=y.device).view(-1, 1)
    return torch.take_along_dim(y, index.expand(y.shape[0], 2, 4), 1)


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("samples", [1, 2, TOKENS])
def test_results_are_those_of_any_batch_size(name: str, samples: int) -> None:
    """Also where there are as many samples as tokens, or as features."""
    x = tokens(samples)
    fixed, free = _attending(_by_expanded_index), _attending(lambda y: y[:, [3, 0]])
    assert capture(fixed, x).fixed_batch == samples
    assert capture(free, x).fixed_batch is None
    explain = EXPLAINERS[name]
    relevance, report = explain(fixed).attribute(x, 1, return_report=True)
    expected, expected_report = explain(free).attribute(x, 1, return_report=True)
    scale = float(expected.abs().max())
    torch.testing.assert_close(relevance, expected, rtol=0, atol=TOLERANCE * scale)
    alone = explain(fixed).attribute(x[-1:], 1)
    torch.testing.assert_close(relevance[-1:], alone, rtol=0, atol=TOLERANCE * scale)
    for node in ("linear_1", "linear_2"):
        torch.testing.assert_close(report[node].received, expected_report[node].received)


def _one_by_one(m: Any, x: Tensor) -> Tensor:
    """Another number of operations for each batch size."""
    return torch.stack([m.a(row) for row in x])


Step = Callable[[Any, Tensor], Tensor]


def _beginning(begin: Step, rest: Step) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(rest(m, torch.relu(begin(m, x))))  # type: ignore[no-any-return]

    sizes = {"a": 4, "b": 4, "fc": 3}
    return seeded(lambda: Function(run, **{name: nn.Linear(4, to) for name, to in sizes.items()}))


# Behind the loop; the batch stays in the first dimension, or is the only one of its size.
FOLLOWED: dict[str, Step] = {
    "first": lambda m, y: m.b(y).mean(1),
    "second": lambda m, y: m.b(y.transpose(0, 1)).mean(0),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_samples_are_followed_where_exports_differ(name: str) -> None:
    x = tokens(3)
    loop = _beginning(_one_by_one, FOLLOWED[name])
    batch = _beginning(lambda m, x: m.a(x), FOLLOWED[name])
    graph = capture(loop, x)
    assert graph.fixed_batch == 3
    assert not graph.unplaced
    maps, inside = rk.LRP(loop, "EpsilonPlus").attribute(x, 1, layers=["b"])
    expected, expected_inside = rk.LRP(batch, "EpsilonPlus").attribute(x, 1, layers=["b"])
    scale = float(expected.abs().max())
    torch.testing.assert_close(maps, expected, rtol=0, atol=TOLERANCE * scale)
    torch.testing.assert_close(inside, expected_inside, rtol=0, atol=TOLERANCE * scale)


def test_samples_that_are_lost_are_refused() -> None:
    model = _beginning(_one_by_one, FOLLOWED["second"])
    with pytest.raises(UnsupportedOperationError, match="exports for a batch of 5 alone and moves"):
        rk.RAP(model).plan(tokens(TOKENS))
