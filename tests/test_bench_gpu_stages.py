"""The stages of bench/gpu.sh on a CPU, with tiny layers and stand-ins for what only a GPU has."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.cases import build, max_error
from bench.check import WrongResultError
from bench.gpu import (
    clock,
    counts,
    fused,
    fused_plan,
    fused_switch,
    messages,
    methods,
    networks,
    ops,
    plan,
    runs,
    settings,
)
from bench.gpu.results import GpuAgreement, GpuMethod, GpuPeaks, GpuRepeats, GpuRun
from bench.gpu.verdicts import NATIVE, REFERENCE, UNIT, ZENNIT
from bench.methods import METHODS, Method
from bench.shapes import layer_shapes
from rapkernels import reference

pytestmark = pytest.mark.cpu_only
PEAKS = GpuPeaks(10.0, {"float32": 0.1, "tf32": 0.1, "bfloat16": 0.1})


class Reports(messages.Reporter):
    """Keeps what is reported."""

    def __init__(self, done: Sequence[str] = ()) -> None:
        super().__init__(marked=False, done=frozenset(done))
        self.rows: list[Any] = []
        self.ended: list[str] = []

    def row(self, table: str, row: Any) -> None:  # noqa: ARG002
        self.rows.append(row)

    def end(self, key: str) -> None:
        self.ended.append(key)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Everything here is tiny."""


def tools(native: Any = reference) -> ops.Tools:
    return ops.Tools(native, reference, clock.CpuClock(), PEAKS, seconds=0.0)


def tiny_rows() -> list[plan.OpRow]:
    """One row of each op and dtype."""
    return list({(r.shape.op, r.dtype): r for r in map(plan.tiny, plan.op_rows())}.values())


def one_row(op: str, dtype: str = "float32") -> plan.OpRow:
    (row,) = [row for row in tiny_rows() if (row.shape.op, row.dtype) == (op, dtype)]
    return row


@pytest.mark.parametrize("row", tiny_rows(), ids=lambda row: f"{row.shape.op}-{row.dtype}")
def test_every_op_is_checked_repeated_and_timed(row: plan.OpRow, native: ModuleType) -> None:
    found = ops.measure_op(row, tools(native))
    assert found.error is None
    assert found.bit_equal is True
    assert (found.seconds is not None) == row.timed
    if row.timed:
        assert found.share_of_copy is not None
        assert found.gb_per_second == pytest.approx(10 * found.share_of_copy)


def _changed(op: str, change: Callable[[Tensor], object]) -> SimpleNamespace:
    def wrong(*arguments: Any) -> Any:
        result = getattr(reference, op)(*arguments)
        change(result if isinstance(result, Tensor) else result[0])
        return result

    return SimpleNamespace(**{op: wrong})


WRONG: dict[str, Callable[[Tensor], object]] = {
    "scaled": lambda r: r.mul_(1.01),
    "the last sample": lambda r: r[-1].mul_(1.01),
    "a sample in the middle": lambda r: r[len(r) // 2].mul_(1.01),
    "NaN": lambda r: r[0].fill_(float("nan")),
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("op", ["gate", "apply_shift", "relprop_linear", "relprop_conv"])
def test_a_wrong_op_is_never_timed(op: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "timed", lambda *_: pytest.fail("a wrong op was timed"))
    row = one_row(op)
    many = replace(row, shape=plan.with_batch(row.shape, 24), timed=True)
    found = ops.measure_op(many, tools(_changed(op, WRONG[fault])))
    assert found.error is not None
    assert "differs from the float64 reference" in found.error
    assert found.seconds is None


def test_products_in_bfloat16_are_judged_by_their_cosine() -> None:
    row = one_row("relprop_conv", "bfloat16")
    assert row.tolerance is None
    assert ops.fault_of(row, 0.5, 0.99) is None
    assert "cosine 0.9400" in str(ops.fault_of(row, 0.5, 0.94))
    assert ops.fault_of(row, float("nan"), 0.99) is not None
    assert ops.fault_of(row, 0.5, float("nan")) is not None


def test_repeats_that_differ_are_seen() -> None:
    noise = torch.Generator().manual_seed(0)

    def jitter(r: Tensor) -> None:
        r.mul_(1 + 1e-6 * float(torch.rand(1, generator=noise)))

    assert ops.measure_op(one_row("gate"), tools(_changed("gate", jitter))).bit_equal is False


def test_a_linear_step_counts_two_reads_of_its_weight() -> None:
    (row,) = [row for row in plan.linear_rows("float32") if row.shape.x[0] == 1]
    case = build(plan.tiny(row).shape)
    x, weight, relevance, psi, scale, _ = case.arguments
    once = 4 * (x.numel() + weight.numel() + relevance.numel()) + 8 * (psi.numel() + scale.numel())
    assert ops.moved_bytes(case, []) == once + 4 * weight.numel()
    assert row.shape.weight == (4096, 25088)


def test_an_error_that_is_nan_is_not_lost() -> None:
    one, nan = torch.ones(2), torch.full((2,), float("nan"))
    assert max_error([one, nan], [one, one]) != max_error([one, one], [one, one])
    assert not max_error([one, nan], [one, one]) <= 1


def test_cases_of_any_dtype_and_layout() -> None:
    shape = one_row("relprop_conv").shape
    for dtype in (torch.float64, torch.bfloat16):
        case = build(shape, "cpu", dtype, channels_last=True)
        x, weight, z = case.arguments[:3]
        assert x.dtype == weight.dtype == z.dtype == dtype
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert z.is_contiguous(memory_format=torch.channels_last)
        part = case.samples(slice(1, 3))
        assert part.arguments[0].shape[0] == 2
        assert part.arguments[1].shape == weight.shape
    assert torch.get_default_dtype() == torch.float32


def test_rows_are_reported_one_by_one() -> None:
    rows = [one_row("gate"), one_row("merge"), one_row("apply_shift")]

    def raises(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access")

    native = SimpleNamespace(gate=raises, merge=reference.merge, apply_shift=None)
    reports = Reports(done=[rows[2].key])
    deadline = settings.Deadline.after(100)
    assert ops.measure_rows(rows, tools(native), reports, deadline) == 1
    assert [row.error for row in reports.rows] == ["RuntimeError: an illegal memory access", None]
    assert reports.ended == [row.key for row in rows[:2]]
    with pytest.raises(settings.OutOfTimeError):
        ops.measure_rows(rows, tools(), reports, settings.Deadline.after(0))


def test_the_plan_covers_what_is_promised() -> None:
    rows = list(plan.op_rows())
    assert len({row.key for row in rows}) == len(rows)
    count = len(layer_shapes())
    checked = [row.dtype for row in rows[: 2 * count]]
    assert checked == ["float64"] * count + ["float32"] * count
    promised = [row for row in rows if row.least_share is not None]
    assert len(promised) == 2 * 5 * 2 + 3
    assert all(row.shape.x[0] == 64 for row in promised if row.shape.op != "relprop_linear")


# Convolutions of our own.


def test_convolutions_are_those_of_the_networks() -> None:
    layers = fused_plan.fused_layers()
    names = [layer.key for layer in layers]
    assert len(names) == len(set(names))
    assert names[0] == "vgg16.features.2/bfloat16"
    shapes = {layer.shape.name: layer.shape for layer in layers}
    last = shapes["resnet50.layer4.0.conv2"]
    assert (last.x, last.weight, last.stride) == ((64, 512, 14, 14), (512, 512, 3, 3), 2)
    # The first layers have another rule.
    assert all(shape.x[1] > 3 for shape in shapes.values())


def test_convolutions_are_checked_and_timed() -> None:
    reports, layers = Reports(), fused_plan.tiny_layers()
    assert fused.measure_layers(layers, tools(), reports, settings.Deadline.after(1000)) == 0
    assert [row.name for row in reports.rows] == [layer.shape.name for layer in layers]
    for row in reports.rows:
        assert row.seconds > 0
        assert row.library_seconds > 0
        assert row.max_error < 1e-4
        # The kernels' own times are a GPU's.
        assert row.quotient_share is None
    broken = SimpleNamespace(relprop_conv=lambda *_: (_ for _ in ()).throw(ValueError("no")))
    after = settings.Deadline.after(1000)
    assert fused.measure_layers(layers[:1], tools(broken), reports, after) == 1
    assert reports.rows[-1].error == "ValueError: no"


def test_the_switch_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "1"):
        monkeypatch.delenv(fused_switch.VARIABLE, raising=False)
        if before is not None:
            monkeypatch.setenv(fused_switch.VARIABLE, before)
        with fused_switch.fused_conv(False):
            assert os.environ[fused_switch.VARIABLE] == "0"
            with fused_switch.fused_conv(True):
                assert os.environ[fused_switch.VARIABLE] == "1"
        assert os.environ.get(fused_switch.VARIABLE) == before


# Whole networks.


def work(reports: Reports, batch: int = 4) -> networks.Work:
    subjects = runs.Subjects("tiny", batch, torch.device("cpu"))
    return networks.Work("tiny", subjects, clock.CpuClock(), reports, batch, 0.0, 0.0)


@pytest.mark.usefixtures("native")
def test_a_network_is_checked_and_timed() -> None:
    reports = Reports()
    piece = dict(work(reports).pieces())["bfloat16/4"]
    assert piece() == 0
    checks = [row for row in reports.rows if isinstance(row, GpuAgreement)]
    assert [row.method for row in checks] == [NATIVE, methods.FUSED, REFERENCE]
    assert all((row.cosine or 0) > 0.99 and row.samples == 4 for row in checks)
    (run,) = [row for row in reports.rows if isinstance(row, GpuRun)]
    found = {row.method: row for row in run.methods}
    assert list(found) == list(methods.METHODS_OF_A_RUN)
    assert found[UNIT].cost == 1.0
    assert (found[NATIVE].cost or 0) > 1
    assert run.batch == 4
    assert run.rounds == 3


@pytest.mark.usefixtures("native")
def test_all_pieces_run_and_none_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> Any:
        raise ValueError("no measurement")

    reports = Reports(done=["float32/4", "tf32/4", "bfloat16/4", "tf32/1", "bfloat16/1"])
    this = work(reports)
    monkeypatch.setattr(runs, "sample", raises)
    # A run that raises is a fault; graphs and counts need a GPU and say so.
    assert networks.run_pieces(this, settings.Deadline.after(1000)) == 1 + 3
    assert reports.ended == [key for key, _ in this.pieces() if key not in reports.done]
    (row,) = [row for row in reports.rows if isinstance(row, GpuRepeats)]
    assert row.bit_equal is True
    with pytest.raises(settings.OutOfTimeError, match="not done: float32/4, tf32/4"):
        networks.run_pieces(this, settings.Deadline.after(0))


@pytest.mark.usefixtures("native")
def test_graphs_are_rows_that_say_why_not() -> None:
    reports = Reports()
    assert work(reports).graphs("float32") == 0
    (run,) = reports.rows
    errors = {row.method: row.error for row in run.methods}
    assert errors["rap_graph"] == "RuntimeError: CUDA graphs need a GPU"
    assert errors[UNIT] is None


@pytest.mark.usefixtures("native")
def test_a_method_that_takes_the_context_with_it_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_device: str) -> None:
        raise settings.ContextLostError("the CUDA context is lost: illegal address")

    monkeypatch.setattr(runs, "require_context", lost)
    reports = Reports()
    this = work(reports)
    with pytest.raises(settings.ContextLostError):
        networks.run_pieces(this, settings.Deadline.after(1000))
    run = reports.rows[-1]
    assert {row.error for row in run.methods} == {"the CUDA context is lost: illegal address"}
    assert run.what == "graphs"
    # The driver is told that the piece is over, and does not ask for it again.
    assert reports.ended[-1] == "float32/graphs"


def _out_of_memory_above(batch: int) -> Method:
    def prepare(model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        if example.shape[0] > batch:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return METHODS[UNIT].prepare(model, example)

    return Method("large", prepare)


@pytest.mark.usefixtures("native")
def test_what_runs_out_of_memory_is_compared_at_a_smaller_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(methods.GPU_METHODS, ZENNIT, _out_of_memory_above(4))
    reports = Reports()
    work(reports, batch=16).whole_run("float32", 16, 0.0)
    found = [row for row in reports.rows if isinstance(row, GpuRun)]
    assert [(run.batch, run.what) for run in found] == [
        (16, "methods"),
        (8, "smaller batch"),
        (4, "smaller batch"),
    ]
    rows = [{row.method: row for row in run.methods} for run in found]
    assert [row[ZENNIT].out_of_memory for row in rows] == [True, True, False]
    assert list(rows[2]) == [UNIT, NATIVE, ZENNIT]
    assert rows[2][ZENNIT].seconds is not None
    assert rows[0][NATIVE].seconds is not None


@pytest.mark.usefixtures("native")
def test_a_wrong_network_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = runs.relevance_of

    def wrong(what: runs.Subject, method: str, expected: Any) -> Tensor:
        found = right(what, method, expected)
        return -found if method == NATIVE else found

    monkeypatch.setattr(runs, "relevance_of", wrong)
    reports = Reports()
    assert work(reports).whole_run("float32", 4, 0.0) == 1
    (run,) = [row for row in reports.rows if isinstance(row, GpuRun)]
    rows = {row.method: row for row in run.methods}
    assert rows[NATIVE].seconds is None
    assert "does not agree with the float64 reference" in str(rows[NATIVE].error)
    assert rows[REFERENCE].seconds is not None


@pytest.mark.usefixtures("native")
def test_a_library_that_is_not_there_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Method("missing", METHODS[UNIT].prepare, ("no_such_module_at_all",))
    monkeypatch.setitem(methods.GPU_METHODS, ZENNIT, missing)
    what = work(Reports()).subjects.get("float32", 2)
    run = runs.measure(what, [UNIT, ZENNIT], clock.CpuClock(), 0.0, {})
    assert "no_such_module_at_all" in str(run.methods[1].error)
    assert run.methods[0].seconds is not None


class CountingClock(clock.CpuClock):
    """A clock that also tells memory."""

    def allocated(self) -> int | None:
        return 10**9

    def peak(self, call: Callable[[], object]) -> int | None:
        call()
        return 3 * 10**9


def test_memory_is_counted_above_the_model() -> None:
    what = work(Reports()).subjects.get("float32", 2)
    row = GpuMethod(UNIT, UNIT, None, False, None, None, None, None)
    found, _ = runs.first_calls(what, row, CountingClock())
    assert found.first_call_gb == found.second_call_gb == pytest.approx(2)


def test_precision_is_put_back() -> None:
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with settings.precision("tf32"):
        assert all(flag.allow_tf32 for flag in flags)
    with contextlib.suppress(KeyError), settings.precision("float32"):
        assert not any(flag.allow_tf32 for flag in flags)
        raise KeyError
    assert [flag.allow_tf32 for flag in flags] == before
    assert settings.storage("tf32") == torch.float32
    with pytest.raises(ValueError, match="not a dtype"):
        settings.dtype_of("nn")


# Stand-ins for CUDA: they show that the calls exist and come in the right order.


class FakeEvent:
    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        FakeEvent.now += 5.0
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeGraph:
    """Runs what was captured once more."""

    work: Callable[[], None]

    def replay(self) -> None:
        self.work()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    stream = SimpleNamespace(wait_stream=lambda _other: seen.append("wait"))
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: seen.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", seen.append)
    return seen


@pytest.mark.parametrize("queued", [True, False])
def test_the_clock_of_a_gpu(fake_cuda: list[str], queued: bool) -> None:
    this = object.__new__(clock.CudaClock)
    this._buffer = torch.zeros(8)
    assert this.seconds(lambda: fake_cuda.append("call"), queued) == pytest.approx(5e-3)
    assert fake_cuda == (["call"] if queued else ["synchronize", "call"])
    assert this.peak(lambda: fake_cuda.append("call")) == 7
    assert fake_cuda[-4:] == ["synchronize", "reset_peak_memory_stats", "call", "synchronize"]
    assert this.allocated() == 5
    this.release()


@pytest.mark.usefixtures("fake_cuda")
def test_a_graph_must_compute_anew() -> None:
    x = torch.ones(3)
    call = lambda x: 2 * x  # noqa: E731
    replay = methods.Replay(call, x)
    replay._graph.work = lambda: replay.output.copy_(call(x))
    methods.check_replay(replay, call, x)
    assert torch.equal(x, torch.ones(3))
    replay._graph.work = lambda: None
    with pytest.raises(WrongResultError, match="the replay of the graph differs"):
        methods.check_replay(replay, call, x)


def test_waits_of_the_host_are_counted(fake_cuda: list[str]) -> None:
    def call() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered at x:1)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert counts.host_syncs(call) == 3
    assert fake_cuda == ["synchronize", "warn", "default"]
    assert counts.kernel_launches(lambda: torch.ones(3).sum()) is None
    assert counts.count_kernels(["gate", "Memcpy DtoD", "Memset (Device)", "sum"]) == 2


def test_samples_rotate_and_end_in_time() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    found = clock.sample(calls, clock.CpuClock(), 0.0, least=2, most=9, warm_up=1)
    assert "".join(order) == "ab" + "ab" + "ba"
    assert {name: len(values) for name, values in found.items()} == {"a": 2, "b": 2}
    assert clock.sample({}, clock.CpuClock(), 0.0, 1, 1) == {}


def test_a_lost_context_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    settings.require_context("cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with (
        pytest.raises(SystemExit) as ended,
        settings.stage(messages.Reporter(marked=False)),
    ):
        settings.require_context("cuda")
    assert ended.value.code == messages.CONTEXT_LOST
