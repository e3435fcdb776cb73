"""A whole network on the GPU: agreement, cost in forward passes, memory, graphs, repeats.

    python -m bench.gpu.networks --network resnet50

The pieces come in order of worth, each is reported when it is done, and none stops the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import click
import torch

from bench.gpu.clock import Clock, clock_of
from bench.gpu.counts import host_syncs, kernel_launches
from bench.gpu.messages import Reporter
from bench.gpu.methods import GPU_METHODS, METHODS_OF_A_RUN, METHODS_OF_GRAPHS
from bench.gpu.plan import PRECISIONS
from bench.gpu.results import GpuCounts, GpuRepeats, GpuRun
from bench.gpu.runs import (
    Subject,
    Subjects,
    What,
    agreements,
    compared_with,
    measure,
    out_of_memory,
    settled,
    unmeasured,
)
from bench.gpu.settings import (
    ContextLostError,
    Deadline,
    OutOfTimeError,
    require_context,
    stage,
    stage_options,
)
from bench.limits import GPU_LIMITS
from bench.machine import one_line
from bench.methods import NATIVE, UNIT
from bench.nets import NETWORKS

LEAST_BATCH = 4
REPEATED_BATCH = 8


@dataclass(frozen=True)
class Work:
    """The network of this process, and what it is measured with."""

    network: str
    subjects: Subjects
    clock: Clock
    reporter: Reporter
    batch: int
    seconds: float
    single_seconds: float

    def pieces(self) -> Iterator[tuple[str, Callable[[], int]]]:
        """Key and function of each piece of work; a function returns its number of faults."""
        for name in PRECISIONS:
            yield f"{name}/{self.batch}", partial(self.whole_run, name, self.batch, self.seconds)
        yield "repeats", self.repeats
        yield "counts", self.counts
        for name in PRECISIONS:
            yield f"{name}/1", partial(self.whole_run, name, 1, self.single_seconds)
        # Last, for a capture that fails may leave the context unusable.
        for name in PRECISIONS:
            yield f"{name}/graphs", partial(self.graphs, name)

    def whole_run(self, name: str, batch: int, seconds: float) -> int:
        """Agreement and times; methods that run out of memory again at smaller batches."""
        names = METHODS_OF_A_RUN
        what = self.subjects.get(name, batch, fresh=batch > 1)
        with settled(self.clock, name):
            found = agreements(what, names)
            for row in found:
                self.reporter.row("agreements", row)
                self.reporter.say(
                    f"{self.network} {name} batch {batch} {row.method}: "
                    + (row.error or f"cosine {row.cosine:.7f}, error {row.max_error:.1e}")
                )
            refused = {row.method: row.error for row in found if row.error is not None}
            run = self._measured(what, names, seconds, refused, "methods")
            while (short := out_of_memory(run)) and batch > LEAST_BATCH:
                batch //= 2
                what = what.first(batch)
                again = compared_with(short)
                run = self._measured(what, again, seconds, refused, "smaller batch")
        return len(refused)

    def graphs(self, name: str) -> int:
        """Captured CUDA graphs at batch 1 beside the calls that they replay."""
        what = self.subjects.get(name, 1)
        with settled(self.clock, name):
            run = self._measured(what, METHODS_OF_GRAPHS, self.single_seconds, {}, "graphs")
        faults = [row for row in run.methods if row.error is not None]
        if faults and self.clock.device.type == "cuda":
            raise ContextLostError(f"{name}: a capture failed, so this process is of no more use")
        # A CPU has none.
        return 0

    def repeats(self) -> int:
        """The same call again and again; where the bits differ, also with deterministic cuDNN."""
        for deterministic in (False, True):
            row = self._repeats(deterministic)
            self.reporter.row("repeats", row)
            setting = ", deterministic cuDNN" if deterministic else ""
            outcome = row.error or ("the same bits" if row.bit_equal else "BITS DIFFER")
            self.reporter.say(f"{self.network}: {row.repeats} repeats{setting}: {outcome}")
            if row.bit_equal:
                return int(deterministic)
        return 1

    def _repeats(self, deterministic: bool) -> GpuRepeats:
        batch, count = min(REPEATED_BATCH, self.batch), GPU_LIMITS.repeats
        error, equal = None, None
        before = torch.backends.cudnn.deterministic
        torch.backends.cudnn.deterministic = deterministic
        try:
            what = self.subjects.get("float32", batch)
            with settled(self.clock, "float32"):
                call = GPU_METHODS[NATIVE].prepare(what.model, what.x)
                first = call(what.x)
                equal = all(torch.equal(first, call(what.x)) for _ in range(count - 1))
        except Exception as raised:
            error = one_line(raised)
        finally:
            torch.backends.cudnn.deterministic = before
        return GpuRepeats(self.network, "float32", batch, count, deterministic, error, equal)

    def counts(self) -> int:
        """Launches and waits of one call at batch 1."""
        what = self.subjects.get("float32", 1)
        faults = 0
        for name in (UNIT, NATIVE):
            error, launches, syncs = None, None, None
            try:
                if self.clock.device.type != "cuda":
                    raise RuntimeError("launches are counted on a GPU only")
                with settled(self.clock, "float32"):
                    call = partial(GPU_METHODS[name].prepare(what.model, what.x), what.x)
                    call()
                    syncs = host_syncs(call)
                    launches = kernel_launches(call)
            except Exception as raised:
                error = one_line(raised)
                faults += self.clock.device.type == "cuda"
            row = GpuCounts(self.network, name, 1, error, launches, syncs)
            self.reporter.row("counts", row)
            self.reporter.say(
                f"{self.network} {name}, batch 1: "
                + (error or f"{launches} kernel launches, {syncs} waits of the host")
            )
        return faults

    def _measured(
        self,
        what: Subject,
        names: Sequence[str],
        seconds: float,
        refused: dict[str, str],
        kind: What,
    ) -> GpuRun:
        """A run that is reported also where it takes the CUDA context with it."""
        try:
            return self._report(measure(what, names, self.clock, seconds, refused, kind))
        except ContextLostError as error:
            self._report(unmeasured(what, names, kind, str(error)))
            raise

    def _report(self, run: GpuRun) -> GpuRun:
        self.reporter.row("runs", run)
        unit = run.forward_seconds
        forward = f"forward {unit * 1e3:.2f} ms" if unit is not None else "no forward"
        self.reporter.say(f"{run.network} {run.precision} batch {run.batch}: {forward}")
        for row in run.methods:
            cost = f"{row.cost:.2f} forwards" if row.cost is not None else row.error or "-"
            memory = f", {row.second_call_gb:.2f} GB" if row.second_call_gb is not None else ""
            self.reporter.say(f"    {row.label}: {cost}{memory}")
        return run


def run_pieces(work: Work, deadline: Deadline) -> int:
    """Do all pieces; returns the number of faults. Raises OutOfTimeError, ContextLostError."""
    faults = 0
    pieces = list(work.pieces())
    for index, (key, piece) in enumerate(pieces):
        if deadline.left() == 0:
            raise OutOfTimeError(f"not done: {', '.join(name for name, _ in pieces[index:])}")
        if not work.reporter.begin(key):
            continue
        try:
            faults += piece()
        except ContextLostError:
            work.reporter.end(key)
            raise
        except Exception as error:  # the other pieces are still worth measuring
            faults += 1
            work.reporter.say(f"{work.network} {key}: {one_line(error)}")
        work.reporter.end(key)
        require_context(work.clock.device.type)
        work.clock.release()
    return faults


@click.command(help="Measure a whole network on the device.")
@click.option("--network", type=click.Choice(list(NETWORKS)), required=True)
@stage_options
def main(
    network: str, device: str, tiny: bool, seconds: float, marked: bool, done: tuple[str, ...]
) -> None:
    """Run the stage; the text for users is the command's help."""
    reporter = Reporter(marked, frozenset(done))
    deadline = Deadline.after(seconds)
    importlib.import_module("rapkernels")
    with stage(reporter):
        clock = clock_of(device)
        sizes = (4, 0.05, 0.05) if tiny else (GPU_LIMITS.batch, 5.0, 1.0)
        work = Work(network, Subjects(network, sizes[0], clock.device), clock, reporter, *sizes)
        faults = run_pieces(work, deadline)
        reporter.detail(f"{faults} faults")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
