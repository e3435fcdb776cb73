"""What only a GPU can show: graphs, streams, devices, and that the host does not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import rapkernels as rk
from rapkernels import host, reference
from rapkernels.errors import ArgumentError, ExportError
from rapkernels.testing import SAMPLES, Sampler, assert_close
from rapkernels.variants import VARIANTS
from tests.explainers import METHODS, STARTING_AT_LAYERS, explainer
from tests.networks import NETWORKS, drawn, images, network, seeded

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
]
OTHER_IMAGES = {"seed": 12, "dtype": torch.float32}


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a call and what the call returned, after calls on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def assert_same(ours: Any, theirs: Any, operations: ModuleType) -> None:
    """The native operations give the same bits; torch's, of the reference, add in any order."""
    if isinstance(ours, Tensor):
        ours, theirs = (ours,), (theirs,)
    for one, other in zip(ours, theirs, strict=True):
        if operations is reference:
            assert_close(one, other, 1e-3)
        else:
            assert torch.equal(one, other)


# ---- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLES)
def test_an_operation_in_a_graph(operations: ModuleType, name: str, dtype: torch.dtype) -> None:
    operation = getattr(operations, name)
    fixed = SAMPLES[name](Sampler(dtype))
    graph, result = captured(lambda: operation(*fixed))
    for seed in (1, 2):
        others = SAMPLES[name](Sampler(dtype, seed=seed))
        for old, new in zip(fixed, others, strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)
        graph.replay()
        assert_same(result, operation(*others), operations)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_call_in_a_graph(name: str, variant: Any, backend: Any, operations: ModuleType) -> None:
    model = network(name, torch.float32)
    explainer = rk.RAP(model, variant, bounds=(-5.0, 5.0), backend=backend)
    x, target = images(dtype=torch.float32), torch.tensor([1, 2])
    other = drawn(*x.shape, **OTHER_IMAGES)
    for chosen in (None, 1, target) if name == "residual" else (None,):
        fixed = x.clone()
        graph, relevance = captured(
            lambda fixed=fixed, chosen=chosen: explainer.attribute(fixed, chosen)
        )
        for given in (other, x):
            fixed.copy_(given)
            graph.replay()
            assert_same(relevance, explainer.attribute(given, chosen), operations)


@pytest.mark.parametrize("name", ["residual", "concatenated", "pools"])
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_in_a_graph(
    method: str, name: str, backend: Any, operations: ModuleType
) -> None:
    made = explainer(method, network(name, torch.float32), name, backend=backend)
    x = images(dtype=torch.float32)
    target, several = torch.tensor([1, 2]), torch.tensor([[0, 1], [4, 2]])
    other = drawn(*x.shape, **OTHER_IMAGES)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda given: made.attribute(given, target),
        lambda given: made.attribute_targets(given, several),
    ]
    for call in calls:
        fixed = x.clone()
        graph, relevance = captured(lambda call=call, fixed=fixed: call(fixed))
        for given in (other, x):
            fixed.copy_(given)
            graph.replay()
            assert_same(relevance, call(given), operations)


def test_fields_patterns_and_given_relevance_in_a_graph(
    backend: Any, operations: ModuleType
) -> None:
    model = network("residual", torch.float32)
    sharing, lrp = rk.SharingRatio(model, backend=backend), rk.LRP(model, backend=backend)
    x, relevance = images(dtype=torch.float32), drawn(2, 5)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda given: sharing.receptive_field(given, "b", (1, 2)),
        lambda given: rk.activation_pattern_prediction(model, given),
        lambda given: lrp.attribute(given, output_relevance=relevance),
        lambda given: lrp.attribute(given, 1, output_relevance="ones"),
    ]
    other = drawn(*x.shape, **OTHER_IMAGES)
    for call in calls:
        fixed = x.clone()
        graph, found = captured(lambda call=call, fixed=fixed: call(fixed))
        for given in (other, x):
            fixed.copy_(given)
            graph.replay()
            assert_same(found, call(given), operations)


@pytest.mark.parametrize("method", METHODS)
def test_a_captured_explainer(method: str, operations: ModuleType, backend: Any) -> None:
    made = explainer(method, network("residual", torch.float32), "residual", backend=backend)
    x, target = images(dtype=torch.float32), torch.tensor([1, 2])
    other, others = drawn(*x.shape, **OTHER_IMAGES), torch.tensor([4, 0])
    replay = made.capture(x, target)
    first = replay(other, others)
    assert_same(first, made.attribute(other, others), operations)
    assert_same(replay(x, target), made.attribute(x, target), operations)
    assert_same(replay(other), made.attribute(other, target), operations)
    # What was returned before is the caller's.
    assert_same(first, made.attribute(other, others), operations)


def test_a_captured_explainer_follows_weights_and_refuses_other_inputs(backend: Any) -> None:
    model = network("residual", torch.float32)
    made = rk.RAP(model, backend=backend)
    x = images(dtype=torch.float32)
    replay = made.capture(x, layers=["b"])
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    relevance, layers = replay(x)
    expected, inside = made.attribute(x, layers=["b"])
    assert_close(relevance, expected, 1e-3)
    assert_close(layers["b"], inside["b"], 1e-3)
    with pytest.raises(ArgumentError, match="x must be as it was captured"):
        replay(x[:1])
    with pytest.raises(ArgumentError, match="target must be a tensor in capture"):
        replay(x, torch.tensor([1, 2]))
    with pytest.raises(ArgumentError, match="target must have the shape"):
        made.capture(x, torch.tensor([1, 2]))(x, torch.tensor([1]))


def test_what_a_graph_cannot_hold(backend: Any) -> None:
    model = seeded(NETWORKS["linear alone"], torch.float32)
    explainer = rk.RAP(model, backend=backend)
    x = images(dtype=torch.float32)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = x + 1
        with pytest.raises(ExportError, match="before a CUDA graph is captured"):
            explainer.attribute(x)
    explainer.attribute(x)
    bounded = rk.RAP(model, bounds=(torch.zeros(3, 1, 1, device="cpu"), 1.0), backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = x + 1
        with pytest.raises(ArgumentError, match="return_report must be False"):
            explainer.attribute(x, return_report=True)
        with pytest.raises(ArgumentError, match="target must be None, an int or a tensor"):
            explainer.attribute(x, [0, 1])
        with pytest.raises(ArgumentError, match="bounds must be numbers or tensors on the device"):
            bounded.attribute(x)
    graph.replay()
    assert torch.equal(kept, x + 1)


# ---- the host does not wait ---------------------------------------------------------------------


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_times_of_a_report_are_those_of_the_stream(backend: Any) -> None:
    explainer = rk.RAP(network("residual", torch.float32), backend=backend)
    x = images(dtype=torch.float32)
    explainer.attribute(x, 1)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    _, report = explainer.attribute(x, 1, return_report=True)
    end.record()
    end.synchronize()
    assert all(row.forward_seconds >= 0 and row.backward_seconds >= 0 for row in report)
    assert 0 < sum(row.seconds for row in report) < 1e-3 * begin.elapsed_time(end)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the read at the end of a call through; holds how many flags each one read."""
    read, seen = host.read_flags, []

    def permitted(flags: Sequence[Tensor]) -> list[bool]:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        found = read(flags)
        torch.cuda.set_sync_debug_mode(before)
        seen.append(len(found))
        return found

    monkeypatch.setattr(host, "read_flags", permitted)
    monkeypatch.setattr("rapkernels.calls._warn_of_non_positive", lambda *_: None)
    return seen


def test_waiting_is_refused() -> None:
    with refusing_to_wait(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1).item()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_host_waits_once(name: str, variant: Any, backend: Any, reads: list[int]) -> None:
    model = network(name, torch.float32)
    bounds = torch.full((3, 1, 1), -5.0, device="cpu"), 5.0
    explainer = rk.RAP(model, variant, bounds, backend)
    x = images(dtype=torch.float32)
    for target in (None, 1, [1, 2], torch.tensor([1, 2])):
        explainer.attribute(x, target)
        reads.clear()
        with refusing_to_wait():
            explainer.attribute(x, target)
        assert len(reads) == 1


@pytest.mark.parametrize("name", ["residual", "concatenated", "pads", "pools", "volumes", "moved"])
@pytest.mark.parametrize("method", METHODS)
def test_the_host_waits_at_the_end_of_all_methods(
    method: str, name: str, backend: Any, reads: list[int]
) -> None:
    made = explainer(method, network(name, torch.float32), name, backend=backend)
    x = images(dtype=torch.float32)
    several = torch.tensor([[0, 1], [4, 2]])
    made.attribute(x, 1)
    reads.clear()
    with refusing_to_wait():
        made.attribute(x, 1)
    # A class distribution checks before its base runs, which checks, and its maps at the end.
    assert len(reads) == (3 if "class_distribution" in method else 1)
    with refusing_to_wait():
        made.attribute_targets(x, several)


# ---- streams and devices ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_all_runs_on_the_current_stream(name: str, backend: Any, operations: ModuleType) -> None:
    explainer = rk.RAP(network(name, torch.float32), backend=backend)
    given = images(dtype=torch.float32)
    expected = explainer.attribute(given, 1)
    x, stream = torch.zeros_like(given), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # What does not wait for this stream finds zeros.
        torch.cuda._sleep(20_000_000)
        x.copy_(given)
        relevance = explainer.attribute(x, 1)
    stream.synchronize()
    assert_same(relevance, expected, operations)


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_run_on_the_current_stream(
    method: str, backend: Any, operations: ModuleType
) -> None:
    """Autograd, which runs behind start layers, has threads of its own."""
    made = explainer(method, network("residual", torch.float32), backend=backend)
    given = images(dtype=torch.float32)
    expected = made.attribute(given, 1)
    x, stream = torch.zeros_like(given), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.copy_(given)
        relevance = made.attribute(x, 1)
    stream.synchronize()
    assert_same(relevance, expected, operations)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_current_device_need_not_be_that_of_the_tensors(variant: Any, backend: Any) -> None:
    x = images(dtype=torch.float32)
    for name in NETWORKS:
        expected = rk.attribute(network(name, torch.float32), x, 1, "rap", variant, backend)
        for index in range(1, torch.cuda.device_count()):
            model = seeded(NETWORKS[name], torch.float32).to(f"cuda:{index}")
            relevance = rk.attribute(model, x.to(f"cuda:{index}"), 1, "rap", variant, backend)
            assert relevance.device.index == index
            assert torch.cuda.current_device() == 0
            torch.testing.assert_close(relevance.to(x.device), expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_arguments_on_another_device(operations: ModuleType, name: str) -> None:
    arguments = SAMPLES[name](Sampler())
    for index, value in enumerate(arguments):
        if index > 0 and isinstance(value, Tensor):
            moved = (*arguments[:index], value.cpu(), *arguments[index + 1 :])
            with pytest.raises((RuntimeError, NotImplementedError), match=r"device|cpu|CPU"):
                getattr(operations, name)(*moved)


# ---- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_calls_give_the_same_bits(
    name: str, variant: Any, native: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    explainer = rk.RAP(network(name, torch.float32), variant, backend="native")
    x = images(dtype=torch.float32)
    first = explainer.attribute(x)
    for _ in range(19):
        assert torch.equal(explainer.attribute(x), first)


@pytest.mark.parametrize("name", ["residual", "concatenated", "pads"])
@pytest.mark.parametrize("method", METHODS)
def test_twenty_calls_of_all_methods_give_the_same_bits(
    method: str, name: str, native: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native
    # Behind a start layer gradients are torch's, whose convolutions and pools add in any order: in
    # "residual" a linear layer alone is there, in the others relevance starts at the output.
    behind = method.endswith(STARTING_AT_LAYERS) and name != "residual"
    options = {"layer": ""} if behind else {}
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    made = explainer(method, network(name, torch.float32), name, backend="native", **options)
    x = images(dtype=torch.float32)
    first = made.attribute(x, 1)
    for _ in range(19):
        assert torch.equal(made.attribute(x, 1), first)
