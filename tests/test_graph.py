"""Capture: the graph computes what the module computes, without in-place writes."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rapkernels.cache import cache_of, fingerprint
from rapkernels.capture import capture
from rapkernels.graph import Graph, map_refs
from rapkernels.methods.rap import rap_method
from tests.networks import Function, drawn


def evaluate(graph: Graph, module: nn.Module, x: Tensor) -> Tensor:
    (only,) = graph.inputs
    live: dict[str, Any] = {**graph.values(module), only: x}
    for node in graph.nodes.values():
        args = map_refs(node.args, live.__getitem__)
        kwargs = map_refs(node.kwargs, live.__getitem__)
        live[node.name] = node.call(*args, **kwargs)
    return live[graph.output]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6(inplace=True)
        self.drop = nn.Dropout(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        skip = self.relu(y)
        z = self.relu6(self.conv(x))
        z += skip
        z.mul_(2).clamp_(max=3)
        z = self.drop(z)
        return self.head(z.mean((2, 3)))


class WritesThroughView(nn.Module):
    """The base of a view is read after the view was written."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        flat = y.view(y.shape[0], -1)
        flat.relu_()
        y[:, 0] = 1.0
        return self.head(y.flatten(1)) + flat.sum(1, keepdim=True)


class WritesDropoutOutput(nn.Module):
    """Dropout in eval mode returns its input itself, so that writing one writes the other."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        y = x - 1
        dropped = self.drop(y)
        dropped.relu_()
        return (y + dropped).flatten(1)


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        return x.flatten(1)


class ReadsOldView(nn.Module):
    """A view made before the write is not read afterwards: no fallback is needed."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        before = y.view(y.shape[0], -1)
        total = before.sum(1, keepdim=True)
        y.relu_()
        return y.flatten(1) + total


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            y = torch.relu(x)
        return self.head(y.flatten(1))


class Constants(nn.Module):
    """A plain tensor attribute, a literal, a computed weight and sizes that follow the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / torch.tensor(0.5)
        x = x + torch.ones(x.shape[0], 1, 1, 1)
        return self.conv(self.conv(x)).view(x.shape[0], -1)


class Elements(nn.Module):
    """Operations with several results, lists and dicts of modules, and values nobody needs."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        self.stages = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, _ = functional.max_pool2d(x, 2, return_indices=True)
        first, second = x.flatten(1)[:, :4].chunk(2, dim=1)
        values = {"a": self.branches["a"](first), "b": self.branches["b"](second)}
        _unused = torch.sigmoid(values["a"])
        y = torch.cat(list(values.values()), 1)
        for stage in self.stages:
            y = stage(y)
        return {"out": y}


class SpecialisedBatch(nn.Module):
    """Only exports with a fixed batch size."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [x[i] * (i + 1) for i in range(x.shape[0])]
        return torch.stack(rows).flatten(1)


def images(batch: int, size: int = 2) -> Tensor:
    return drawn(batch, 3, size, size, seed=batch)


MODULES = [
    InPlace,
    WritesThroughView,
    WritesDropoutOutput,
    WritesInput,
    ReadsOldView,
    CountsCalls,
    Constants,
    Elements,
    SpecialisedBatch,
]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graph_computes_what_the_module_computes(kind: type[nn.Module], batch: int) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    x = images(batch, 4 if kind is Elements else 2)
    before = x.clone()
    with torch.no_grad():
        graph = capture(module, x)
        result = evaluate(graph, module, x)
        assert torch.equal(x, before), "the graph must not write its input"
        expected = module(x.clone())
    expected = expected["out"] if isinstance(expected, dict) else expected
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("kind", MODULES)
def test_no_operation_writes_its_arguments(kind: type[nn.Module]) -> None:
    graph = capture(kind().eval(), images(2, 4 if kind is Elements else 2))
    for node in graph.nodes.values():
        schema = getattr(node.target, "_schema", None)
        assert schema is None or not schema.is_mutable, node.operation


@pytest.mark.parametrize("kind", [kind for kind in MODULES if kind is not SpecialisedBatch])
def test_one_graph_serves_every_batch_size(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    size = 4 if kind is Elements else 2
    graph = capture(module, images(1, size))
    assert graph.fixed_batch is None
    for batch in (1, 3, 7):
        x = images(batch, size)
        with torch.no_grad():
            result = evaluate(graph, module, x)
            expected = module(x.clone())
        expected = expected["out"] if isinstance(expected, dict) else expected
        torch.testing.assert_close(result, expected)
        assert graph.sized(graph.shape_of(graph.output), batch) == tuple(expected.shape)


def test_a_specialised_batch_is_captured_for_its_size() -> None:
    graph = capture(SpecialisedBatch(), images(3))
    assert graph.fixed_batch == 3
    assert [graph.shapes[name] for name in graph.inputs] == [(graph.batch, 3, 2, 2)]


def test_in_place_operations_need_no_decomposition_without_aliases() -> None:
    operations = {node.operation for node in capture(InPlace().eval(), images(2)).nodes.values()}
    assert {"aten.conv2d.default", "aten.relu.default", "aten.hardtanh.default"} <= operations
    assert "aten.convolution.default" not in operations


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Dropout(inplace=True)])
def test_a_model_may_end_in_an_in_place_operation(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), activation).eval()
    x = images(2, 2)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(capture(model, x), model, x), model(x))


def test_squeezing_leaves_the_batch() -> None:
    model = Function(lambda _, x: x.mean((2, 3), keepdim=True).squeeze())
    graph = capture(model, images(2))
    assert evaluate(graph, model, images(1)).shape == (1, 3)
    torch.testing.assert_close(evaluate(graph, model, images(4)), model(images(4)))


def test_unneeded_operations_are_left_out() -> None:
    operations = {node.operation for node in capture(Elements(), images(2, 4)).nodes.values()}
    assert "aten.sigmoid.default" not in operations


def test_parameters_are_read_at_each_call() -> None:
    module = Constants().eval()
    x = images(2)
    graph = capture(module, x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
        module.mean = torch.zeros(1, 3, 1, 1)
        torch.testing.assert_close(evaluate(graph, module, x), module(x))


def test_nodes_know_their_modules() -> None:
    graph = capture(Elements(), images(2, 4))
    linear = [node for node in graph.nodes.values() if node.operation == "aten.linear.default"]
    assert [node.module for node in linear] == ["branches.a", "branches.b", "stages.0"]


def test_capture_does_not_run_the_modules_side_effects() -> None:
    module = CountsCalls().eval()
    capture(module, images(2))
    assert module.calls.item() == 0


def test_cache_exports_once_and_lets_the_module_go(monkeypatch: pytest.MonkeyPatch) -> None:
    exports = []
    monkeypatch.setattr(
        "rapkernels.cache.capture", lambda *args: exports.append(args[1].shape) or capture(*args)
    )
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    cache = cache_of(module)
    assert cache_of(module) is cache
    first = cache.program(module, images(2), rap_method("default"))
    assert cache.program(module, images(5), rap_method("default")) is first
    assert cache.program(module, images(5), rap_method("paper")) is not first
    assert len(exports) == 1
    cache.program(module, images(2).double(), rap_method("default"))
    assert len(exports) == 2
    gone = weakref.ref(module)
    exports.clear()
    del module
    gc.collect()
    assert gone() is None


def test_a_fixed_batch_is_cached_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    exports = []
    monkeypatch.setattr(
        "rapkernels.cache.capture", lambda *args: exports.append(args[1].shape) or capture(*args)
    )
    module = nn.Sequential(SpecialisedBatch(), nn.Linear(12, 2))
    from rapkernels.rules import register_rule, unregister_rule

    cache = cache_of(module)
    register_rule("aten.stack.default", "structure")
    try:
        for batch in (3, 3, 2, 3):
            cache.program(module, images(batch), rap_method("default"))
    finally:
        unregister_rule("aten.stack.default")
    assert [shape[0] for shape in exports] == [3, 2]


def test_fingerprint_follows_the_structure() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout())
    seen = [fingerprint(module)]
    assert fingerprint(module) == seen[0]
    with torch.no_grad():
        module[0].weight.zero_()
    assert fingerprint(module) == seen[0], "parameter values are no structure"
    module[0].stride = (2, 2)
    seen.append(fingerprint(module))
    module.eval()
    seen.append(fingerprint(module))
    module[1] = nn.ReLU6()
    seen.append(fingerprint(module))
    module[1].register_forward_hook(lambda *_: None)
    seen.append(fingerprint(module))
    module[0].weight = nn.Parameter(torch.zeros(5, 3, 3, 3))
    seen.append(fingerprint(module))
    assert len(set(seen)) == len(seen)


def test_a_changed_module_is_exported_again() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
    x = images(2, 4)
    cache = cache_of(module)
    before = cache.program(module, x, rap_method("default")).graph
    module[0].stride = (2, 2)
    after = cache.program(module, x, rap_method("default")).graph
    assert before.shape_of(before.output)[1] == 64
    assert after.shape_of(after.output)[1] == 16
