"""One run: methods on one network at one precision and batch, checked before they are timed."""

from __future__ import annotations

import copy
import importlib
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from bench.check import Truth, WrongResultError, compare, explain
from bench.gpu.clock import Clock, sample
from bench.gpu.fused_switch import fused_conv
from bench.gpu.methods import CHANGING, CHECKED_METHODS, FUSED, GPU_METHODS, SAME_RESULT
from bench.gpu.results import GpuAgreement, GpuMethod, GpuRun
from bench.gpu.settings import precision, require_context, storage
from bench.limits import GPU_TOLERANCES
from bench.machine import one_line
from bench.methods import NATIVE, UNIT, Call
from bench.nets import load
from bench.timing import spread

CHECKED = 4
# Of the float64 reference itself, which sums in another order than on a CPU.
TRUTH_CONSERVATION = 1e-9
What = Literal["methods", "smaller batch", "graphs"]


@dataclass(frozen=True)
class Subject:
    """A network in one precision, channels-last, with its input."""

    network: str
    precision: str
    model: nn.Module
    x: Tensor

    def first(self, samples: int) -> Subject:
        """The same with the first few samples."""
        x = self.x[:samples].contiguous(memory_format=torch.channels_last)
        return replace(self, x=x)


class Subjects:
    """One network, drawn once on the CPU and kept on the device once for each storage type."""

    def __init__(self, network: str, batch: int, device: torch.device) -> None:
        self._network = network
        self._model, self._x = load(network, batch, device)
        self._kept: dict[torch.dtype, nn.Module] = {}

    def get(self, name: str, batch: int, fresh: bool = False) -> Subject:
        """The network at a precision; a fresh one has nothing cached that belongs to its memory."""
        dtype, layout = storage(name), torch.channels_last
        model = None if fresh else self._kept.get(dtype)
        if model is None:
            model = copy.deepcopy(self._model).to(dtype=dtype).to(memory_format=layout)  # type: ignore[call-overload]
        if not fresh:
            self._kept[dtype] = model
        x = self._x[:batch].to(dtype).clone(memory_format=layout)
        return Subject(self._network, name, model, x)


@contextmanager
def settled(clock: Clock, name: str) -> Iterator[None]:
    """A precision, and the device's memory given back before and after."""
    clock.release()
    with precision(name):
        try:
            yield
        finally:
            clock.release()


def truth_of(what: Subject) -> Truth:
    """The float64 reference on the first samples, for the classes that the model predicts."""
    few = what.first(CHECKED)
    with torch.no_grad():
        targets = few.model(few.x).argmax(dim=1)
    exact = copy.deepcopy(few.model).double()
    relevance, error = explain(exact, few.x.double(), "reference", targets)
    if not error <= TRUTH_CONSERVATION:
        raise WrongResultError(f"the float64 reference itself loses relevance: {error:.1e}")
    return Truth(relevance, targets)


def agreement(what: Subject, method: str, expected: Truth) -> GpuAgreement:
    """Compare what `method` gives for the whole batch with the reference on its first samples."""
    count = expected.targets.shape[0]
    row = GpuAgreement(what.network, what.precision, method, count, None, None, None, None)
    try:
        try:
            found = relevance_of(what, method, expected)
        except torch.OutOfMemoryError:
            found = relevance_of(what.first(count), method, expected)
        if not bool(found.isfinite().all()):
            raise WrongResultError(f"{method}: the relevance holds NaN or inf")
        tolerance = GPU_TOLERANCES[what.precision]
        right = compare(method, found[:count], 0.0, expected, tolerance)
    except Exception as error:  # the row says what went wrong, and the method is not timed
        return replace(row, error=one_line(error))
    return replace(
        row, cosine=right.cosine, max_error=right.max_error, total_error=right.total_error
    )


def relevance_of(what: Subject, method: str, expected: Truth) -> Tensor:
    """What `method` gives for the whole batch, the first samples explained as the truth is."""
    with torch.no_grad():
        targets = what.model(what.x).argmax(dim=1)
    targets[: expected.targets.shape[0]] = expected.targets
    backend = CHECKED_METHODS[method]
    explainer = importlib.import_module("rapkernels").RAP(what.model, backend=backend)
    with fused_conv(method == FUSED):
        relevance: Tensor = explainer.attribute(what.x, target=targets)
    return relevance


def agreements(what: Subject, methods: Iterable[str]) -> list[GpuAgreement]:
    """All of our own methods among `methods`."""
    ours = [name for name in methods if name in CHECKED_METHODS]
    try:
        expected = truth_of(what) if ours else None
    except Exception as error:  # without the reference nothing of ours may be timed
        text = f"no reference: {one_line(error)}"
        return [
            GpuAgreement(what.network, what.precision, name, 0, text, None, None, None)
            for name in ours
        ]
    return [] if expected is None else [agreement(what, name, expected) for name in ours]


def measure(
    what: Subject,
    names: Sequence[str],
    clock: Clock,
    seconds: float,
    refused: dict[str, str],
    kind: What = "methods",
) -> GpuRun:
    """Time `names`, the unit among them; those in `refused` are rows that say why not."""
    calls: dict[str, Call] = {}
    rows: dict[str, GpuMethod] = {}
    for name in names:
        reason = refused.get(SAME_RESULT.get(name, name))
        row = GpuMethod(name, GPU_METHODS[name].label, reason, False, None, None, None, None)
        if reason is None:
            row, call = first_calls(what, row, clock)
            if call is not None:
                calls[name] = call
        rows[name] = row
    loops = {name: partial(call, what.x) for name, call in calls.items()}
    samples = sample(loops, clock, seconds, 3, 25, warm_up=1)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    unit = medians.get(UNIT)
    for name, value in medians.items():
        cost = None if unit is None else value / unit
        rows[name] = replace(rows[name], seconds=value, cost=cost)
    return GpuRun(
        network=what.network,
        precision=what.precision,
        batch=what.x.shape[0],
        what=kind,
        rounds=len(next(iter(samples.values()), [])),
        forward_seconds=unit,
        forward_spread=None if unit is None else spread(samples[UNIT]),
        methods=list(rows.values()),
    )


def unmeasured(what: Subject, names: Sequence[str], kind: What, reason: str) -> GpuRun:
    """The run where nothing could be measured."""
    rows = [
        GpuMethod(name, GPU_METHODS[name].label, reason, False, None, None, None, None)
        for name in names
    ]
    return GpuRun(what.network, what.precision, what.x.shape[0], kind, 0, None, None, rows)


def first_calls(what: Subject, row: GpuMethod, clock: Clock) -> tuple[GpuMethod, Call | None]:
    """Prepare a method and call it twice, with the memory that each call needs."""
    method = GPU_METHODS[row.method]
    prepared: list[Call] = []
    try:
        method.load_libraries()
        own = copy.deepcopy(what.model) if row.method in CHANGING else what.model
        clock.release()
        zero = clock.allocated()

        def first() -> object:
            prepared.append(method.prepare(own, what.x))
            return prepared[0](what.x)

        peaks = [clock.peak(first), clock.peak(lambda: prepared[0](what.x))]
    except torch.OutOfMemoryError:
        prepared.clear()
        clock.release()
        return replace(row, error="out of memory", out_of_memory=True), None
    except Exception as error:  # a library may raise anything; the row says what
        text = one_line(error)
        prepared.clear()
        require_context(clock.device.type)
        clock.release()
        return replace(row, error=text), None
    first_gb, second_gb = (None if zero is None else (p or 0) / 1e9 - zero / 1e9 for p in peaks)
    return replace(row, first_call_gb=first_gb, second_call_gb=second_gb), prepared[0]


def out_of_memory(run: GpuRun) -> list[str]:
    """The methods that need a smaller batch; none where our own one does too."""
    return [row.method for row in run.methods if row.out_of_memory]


def compared_with(names: Sequence[str]) -> list[str]:
    """What a run at a smaller batch must hold, so that `names` can be compared."""
    return [name for name in GPU_METHODS if name in {UNIT, NATIVE, *names}]
