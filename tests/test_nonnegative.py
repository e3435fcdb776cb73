"""Which values are said never to be negative: a promise that rules rely on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rapkernels.capture import capture
from rapkernels.graph import Graph
from rapkernels.nonnegative import nonnegative_values
from rapkernels.rules import rule_class
from tests.networks import NETWORKS, Function, conv, images, network, seeded

pytestmark = pytest.mark.cpu_only


def promised(graph: Graph) -> frozenset[str]:
    classes = {
        node.name: rule_class(graph, node)
        for node in graph.nodes.values()
        if node.kind == "activation"
    }
    families = {name: "custom" if cls is None else cls.family for name, cls in classes.items()}
    return nonnegative_values(graph, families)


def values_of(graph: Graph, model: nn.Module, x: Tensor) -> dict[str, Any]:
    (only,) = graph.inputs
    live: dict[str, Any] = {**graph.values(model), only: x}
    with torch.no_grad():
        for node in graph.nodes.values():
            live[node.name] = node.run(live)
    return live


@pytest.mark.parametrize("name", NETWORKS)
def test_the_promise_is_kept(name: str) -> None:
    model = network(name)
    graph = capture(model, images())
    for scale in (1.0, -30.0):
        live = values_of(graph, model, images(4) * scale)
        for value in promised(graph):
            assert float(live[value].min()) >= 0


def test_gates_keep_their_signal_from_turning_negative() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = functional.relu(m.a(x))
        y = y * torch.sigmoid(m.b(y.mean((2, 3), keepdim=True)))
        y = y * functional.hardsigmoid(m.b(y)) * torch.softmax(y, 1)
        return (functional.silu(y) * m.a.bias[:, None, None]).flatten(1)

    graph = capture(seeded(lambda: Function(run, a=conv(3), b=conv(4, 4, 1))), images())
    products = [name for name, node in graph.nodes.items() if node.operation == "aten.mul.Tensor"]
    known = promised(graph)
    # The last one is a product with a parameter, of any sign.
    assert [name in known for name in products] == [True, True, True, False]


WITH_PARAMETERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a factor before": lambda y, p: p * y,
    "a term before": lambda y, p: p + y,
    "a term behind": lambda y, p: y + p,
    "concatenated": lambda y, p: torch.cat([y, p.expand(y.shape)], 1),
    "stacked": lambda y, p: torch.stack([p.expand(y.shape), y], 1),
    "filled": lambda y, p: y.masked_fill(y > 0.3, p.amin()),
    "chosen": lambda y, p: torch.where(y > 0.3, y, p.amin()),
    "mixed": lambda y, p: torch.einsum("ij,njhw->nihw", p[0, :, :, 0].expand(4, 4), y),
}


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_parameters_can_have_any_sign(name: str) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = functional.relu(m.a(x))
        return WITH_PARAMETERS[name](y, m.a.bias.view(1, 4, 1, 1))

    model = seeded(lambda: Function(run, a=conv(3)))
    graph = capture(model, images())
    assert float(model(images()).detach().min()) < 0
    assert graph.output not in promised(graph)
    assert promised(graph)
