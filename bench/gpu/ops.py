"""Each op on the GPU: right, the same at each repeat, and then how fast.

    python -m bench.gpu.ops                      # all rows of bench.gpu.plan
    python -m bench.gpu.ops --only vgg16.fc6     # rows whose key holds this text

Every row is compared with the float64 reference before it is timed, and a wrong one is not timed.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import click
import torch
from torch import Tensor

from bench.cases import Case, build, comparable, max_error
from bench.gpu.clock import Clock, clock_of, sample
from bench.gpu.messages import Reporter, finite
from bench.gpu.plan import OpRow, op_rows, size_text, tiny
from bench.gpu.results import GpuOp, GpuPeaks
from bench.gpu.settings import (
    Deadline,
    dtype_of,
    precision,
    require_context,
    stage,
    stage_options,
    storage,
)
from bench.limits import GPU_LIMITS
from bench.machine import one_line

COPY_ELEMENTS = 2**29
MATMUL_SIZE = 8192
# Samples do not depend on each other: the reference, which needs far more memory, takes a few.
CHECKED = 4
LEAST_COSINE = 0.95


@dataclass(frozen=True)
class Tools:
    """What every row is measured with: two modules with the ops' signatures, clock and peaks."""

    native: Any
    reference: Any
    clock: Clock
    peaks: GpuPeaks
    seconds: float = 0.4


def measure_peaks(
    clock: Clock, elements: int = COPY_ELEMENTS, size: int = MATMUL_SIZE, seconds: float = 1.0
) -> GpuPeaks:
    """Copy bandwidth, bytes read and written, and the rate of a matrix product by precision."""
    source = torch.randn(elements, device=clock.device)
    target = torch.empty_like(source)
    copy = _median(partial(target.copy_, source), clock, seconds)
    del source, target
    rates = {}
    for name in ("float32", "tf32", "bfloat16"):
        a, b = (torch.randn(size, size, device=clock.device).to(storage(name)) for _ in range(2))
        with precision(name):
            rates[name] = 2 * size**3 / _median(partial(torch.mm, a, b), clock, seconds) / 1e12
    return GpuPeaks(2 * 4 * elements / copy / 1e9, rates)


def measure_op(row: OpRow, tools: Tools) -> GpuOp:
    """Check one row, repeat it, and time it if it is right and to be timed."""
    shape = row.shape
    result = unmeasured(row)
    with precision("float32"), torch.no_grad():
        case = build(shape, tools.clock.device, dtype_of(row.dtype), channels_last=True)
        run = partial(getattr(tools.native, shape.op), *case.arguments)
        found = _parts(run())
        error, cosine = check(case, found, tools.reference)
        result = replace(result, max_error=finite(error), cosine=finite(cosine))
        fault = fault_of(row, error, cosine)
        if fault:
            return replace(result, error=fault)
        repeats = (_parts(run()) for _ in range(GPU_LIMITS.repeats - 1))
        equal = all(all(map(torch.equal, found, again)) for again in repeats)
        result = replace(result, bit_equal=equal)
        if not row.timed:
            return result
        moved = moved_bytes(case, found)
        del found
        return timed(result, run, case, moved, tools)


def check(case: Case, found: Sequence[Tensor], reference: Any) -> tuple[float, float]:
    """Largest error of all results and least cosine of the first, on some of the samples."""
    samples, op = case.shape.x[0], case.shape.op
    starts = {0, max(0, samples // 2 - CHECKED // 2), max(0, samples - CHECKED)}
    errors, cosines = [], []
    for start in sorted(starts):
        chosen = slice(start, start + CHECKED)
        exact = case.samples(chosen).in_float64()
        expected = comparable(op, getattr(reference, op)(*exact.arguments))
        parts = [case.rows(part, chosen) for part in found]
        mine = comparable(op, parts[0] if len(parts) == 1 else parts)
        errors.append(max_error(mine, expected))
        cosines.append(torch.cosine_similarity(mine[0].flatten(), expected[0].flatten(), 0))
    worst = torch.tensor(errors, dtype=torch.float64).amax()
    return float(worst), float(torch.stack(cosines).amin())


def fault_of(row: OpRow, error: float, cosine: float) -> str | None:
    """What is wrong with a result, None if nothing is; NaN is wrong."""
    if row.tolerance is not None:
        if error <= row.tolerance:
            return None
        return (
            f"differs from the float64 reference by {error:.2e} of the largest entry, allowed at "
            f"most {row.tolerance:.2g}"
        )
    if math.isfinite(error) and cosine >= LEAST_COSINE:
        return None
    return f"cosine {cosine:.4f} with the float64 reference, allowed at least {LEAST_COSINE}"


def moved_bytes(case: Case, results: Sequence[Tensor]) -> int:
    """Bytes that have to move; a linear step reads its weight twice, forward and backward."""
    again = case.arguments[1] if case.shape.op == "relprop_linear" else None
    twice = 0 if again is None else again.numel() * again.element_size()
    return case.least_bytes(results) + twice


def timed(result: GpuOp, run: Callable[[], object], case: Case, moved: int, tools: Tools) -> GpuOp:
    """`result` with the time of `run` and what follows from it."""
    seconds = _median(run, tools.clock, tools.seconds)
    rate, speed = moved / seconds / 1e9, case.operations / seconds / 1e12
    return replace(
        result,
        seconds=seconds,
        gb_per_second=rate,
        share_of_copy=rate / tools.peaks.copy_gb_per_second,
        tflop_per_second=speed or None,
        share_of_matmul=speed / tools.peaks.matmul_tflop_per_second[result.dtype] or None,
    )


def _median(call: Callable[[], object], clock: Clock, seconds: float) -> float:
    return statistics.median(sample({"": call}, clock, seconds, 5, 200, queued=True)[""])


def _parts(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def measure_rows(
    rows: Sequence[OpRow], tools: Tools, reporter: Reporter, deadline: Deadline
) -> int:
    """Measure all rows and report each; returns how many are wrong or raised.

    Raises OutOfTimeError, ContextLostError.
    """
    faults = 0
    for row in rows:
        deadline.check()
        if not reporter.begin(row.key):
            continue
        try:
            result = measure_op(row, tools)
        except Exception as error:  # whatever it is, the other rows are still worth measuring
            result = unmeasured(row, one_line(error))
        reporter.row("ops", result)
        reporter.end(row.key)
        reporter.say(_line(result))
        faults += result.error is not None or result.bit_equal is False
        require_context(tools.clock.device.type)
        tools.clock.release()
    return faults


def unmeasured(row: OpRow, error: str | None = None) -> GpuOp:
    """The row before anything is known of it, or where nothing can be."""
    shape = row.shape
    return GpuOp(
        name=shape.name,
        network=shape.network,
        op=shape.op,
        dtype=row.dtype,
        shape=size_text(shape.x),
        error=error,
        max_error=None,
        tolerance=row.tolerance,
        cosine=None,
        bit_equal=None,
        least_share=row.least_share,
    )


def _line(result: GpuOp) -> str:
    head = f"{result.name} {result.op} {result.dtype} {result.shape}"
    if result.error is not None:
        return f"{head}: WRONG: {result.error}"
    equal = "" if result.bit_equal else ", REPEATS DIFFER"
    text = f"{head}: error {result.max_error:.1e}{equal}"
    if result.seconds is None:
        return text
    return f"{text}, {result.seconds * 1e3:.3f} ms, {result.share_of_copy:.0%} of a copy"


@click.command(help="Check and time every op on the device.")
@click.option("--only", default="", help="Rows whose key holds this text.")
@stage_options
def main(
    only: str, device: str, tiny: bool, seconds: float, marked: bool, done: tuple[str, ...]
) -> None:
    """Run the stage; the text for users is the command's help."""
    reporter = Reporter(marked, frozenset(done))
    deadline = Deadline.after(seconds)
    rows = [row for row in chosen_rows(tiny) if only in row.key]
    info = importlib.import_module("rapkernels").build_info()
    if not info["extension"] or (device == "cuda" and not info["cuda"]):
        raise click.ClickException(
            f"the native ops for {device} are not loaded: {info['error'] or 'built without CUDA'}"
        )
    with stage(reporter):
        clock = clock_of(device)
        small = {"elements": 2**16, "size": 64, "seconds": 0.01} if tiny else {}
        peaks = measure_peaks(clock, **small)  # type: ignore[arg-type]
        reporter.part("peaks", peaks)
        rates = ", ".join(f"{k} {v:.1f}" for k, v in peaks.matmul_tflop_per_second.items())
        reporter.say(f"copy {peaks.copy_gb_per_second:.0f} GB/s; matmul, TFLOP/s: {rates}")
        clock.release()
        tools = Tools(
            importlib.import_module("rapkernels.ops"),
            importlib.import_module("rapkernels.reference"),
            clock,
            peaks,
            0.005 if tiny else 0.4,
        )
        faults = measure_rows(rows, tools, reporter, deadline)
        reporter.detail(f"{len(rows)} rows, {faults} wrong")
    raise SystemExit(1 if faults else 0)


def chosen_rows(small: bool) -> list[OpRow]:
    """All rows, or all of them on small layers, once each."""
    if not small:
        return list(op_rows())
    return list({row.key: row for row in map(tiny, op_rows())}.values())


if __name__ == "__main__":
    main()
