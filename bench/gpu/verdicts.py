"""Each promise of a GPU run: met, missed or not measured. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from bench.gpu.fused_verdicts import fused_verdicts
from bench.gpu.plan import (
    ELEMENTWISE,
    LINEAR_BATCHES,
    NETWORKS,
    PRECISIONS,
    TIMED_DTYPES,
    OpRow,
    elementwise_rows,
    linear_rows,
    op_rows,
    size_text,
)
from bench.gpu.results import GpuFile, GpuLimit, GpuMethod, GpuOp, GpuRun, Verdict
from bench.limits import GPU_LIMITS

# As in bench.methods, which imports torch.
UNIT, NATIVE, REFERENCE = "forward", "rap", "rap_reference"
ZENNIT = "zennit_epsilon_alpha2_beta1"
NOTHING: Final = "not measured"


def verdicts(document: GpuFile) -> list[GpuLimit]:
    """All promises, in the order of their worth."""
    return [
        *_correctness(document),
        *_bandwidth(document),
        *(row for name in NETWORKS for row in _cost(document, name)),
        *fused_verdicts(document),
    ]


def _correctness(document: GpuFile) -> Iterable[GpuLimit]:
    bounds = {"float64": GPU_LIMITS.float64_error, "float32": GPU_LIMITS.float32_error}
    for dtype, bound in bounds.items():
        wanted = [row for row in op_rows() if row.dtype == dtype and not row.timed]
        yield _worst_error(document, f"every op in {dtype} against the reference", wanted, bound)
    yield _golden(document)
    for network in NETWORKS:
        yield _cosine(document, network)
    yield _equal_ops(document)
    for network in NETWORKS:
        yield _equal_network(document, network)


def _found(document: GpuFile, wanted: Iterable[OpRow]) -> tuple[list[GpuOp], int]:
    """The rows that are wanted, and how many of them are missing."""
    keys = {(row.shape.name, size_text(row.shape.x), row.dtype) for row in wanted}
    rows = {(row.name, row.shape, row.dtype): row for row in document.ops}
    return [rows[key] for key in keys if key in rows], len(keys - set(rows))


def _worst_error(document: GpuFile, what: str, wanted: Sequence[OpRow], bound: float) -> GpuLimit:
    found, missing = _found(document, wanted)
    limit = f"at most {bound:g} of the largest entry"
    if wrong := [row for row in found if row.error is not None]:
        return GpuLimit(what, limit, f"{wrong[0].name}: {wrong[0].error}", "missed")
    errors = [(row.max_error, row.name) for row in found if row.max_error is not None]
    if not errors:
        return GpuLimit(what, limit, NOTHING, NOTHING)
    worst, name = max(errors)
    text = f"worst {worst:.1e} ({name}), {len(found)} of {len(found) + missing} shapes"
    return GpuLimit(what, limit, text, _all_there(missing, worst <= bound))


def _all_there(missing: int, kept: bool) -> Verdict:
    """A promise of all is missed by one and met by none less than all."""
    if not kept:
        return "missed"
    return NOTHING if missing else "met"


def _golden(document: GpuFile) -> GpuLimit:
    what, limit, tests = "golden files of the authors' code", "all tests pass", document.tests
    if tests is None or not tests.golden_passed + tests.golden_failed:
        return GpuLimit(what, limit, NOTHING, NOTHING)
    text = f"{tests.golden_passed} passed, {tests.golden_failed} failed"
    return GpuLimit(
        what, limit, text, _all_there(int(not tests.complete), tests.golden_failed == 0)
    )


def _cosine(document: GpuFile, network: str) -> GpuLimit:
    what = f"{NETWORKS[network]} in float32 against float64"
    limit = f"cosine at least {GPU_LIMITS.cosine}"
    rows = [
        row
        for row in document.agreements
        if (row.network, row.precision, row.method) == (network, "float32", NATIVE)
    ]
    if wrong := [row for row in rows if row.error is not None]:
        return GpuLimit(what, limit, str(wrong[0].error), "missed")
    known = [(row.cosine, row.max_error) for row in rows if row.cosine is not None]
    if not known:
        return GpuLimit(what, limit, NOTHING, NOTHING)
    worst = min(cosine for cosine, _ in known)
    largest = max(error or 0.0 for _, error in known)
    text = f"cosine {worst:.7f}, largest error {largest:.1e} of the largest entry"
    return GpuLimit(what, limit, text, "met" if worst >= GPU_LIMITS.cosine else "missed")


def _equal_ops(document: GpuFile) -> GpuLimit:
    what, limit = "repeats of every op", f"{GPU_LIMITS.repeats} times the same bits"
    found, missing = _found(document, (row for row in op_rows() if not row.timed))
    rows = [row for row in document.ops if row.bit_equal is not None]
    if not rows:
        return GpuLimit(what, limit, NOTHING, NOTHING)
    differing = sorted({f"{row.name} in {row.dtype}" for row in rows if not row.bit_equal})
    text = f"differ: {', '.join(differing)}" if differing else f"the same, {len(rows)} rows"
    missing += sum(row.bit_equal is None for row in found)
    return GpuLimit(what, limit, text, _all_there(missing, not differing))


def _equal_network(document: GpuFile, network: str) -> GpuLimit:
    what = f"repeats of {NETWORKS[network]}"
    limit = f"{GPU_LIMITS.repeats} times the same bits"
    rows = [row for row in document.repeats if row.network == network]
    if not rows:
        return GpuLimit(what, limit, NOTHING, NOTHING)
    plain = [row for row in rows if not row.deterministic_cudnn]
    if any(row.bit_equal for row in plain):
        return GpuLimit(what, limit, "the same", "met")
    if any(row.bit_equal for row in rows):
        return GpuLimit(what, limit, "the same with deterministic cuDNN only", "missed")
    return GpuLimit(what, limit, rows[0].error or "they differ", "missed")


def _bandwidth(document: GpuFile) -> Iterable[GpuLimit]:
    for op in ELEMENTWISE:
        wanted = [
            row for dtype in TIMED_DTYPES for row in elementwise_rows(dtype) if row.shape.op == op
        ]
        yield _least_share(document, op, wanted, GPU_LIMITS.elementwise_share)
    fc6 = linear_rows("float32")
    for batch in LINEAR_BATCHES:
        wanted = [row for row in fc6 if row.shape.x[0] == batch]
        what = f"fc6 of VGG-16, batch {batch}, two reads of its weight"
        yield _least_share(document, what, wanted, GPU_LIMITS.linear_share)


def _least_share(document: GpuFile, what: str, wanted: Sequence[OpRow], bound: float) -> GpuLimit:
    limit = f"at least {bound:.0%} of a copy"
    found, missing = _found(document, wanted)
    if wrong := [row for row in found if row.error is not None]:
        return GpuLimit(what, limit, f"{wrong[0].name}: {wrong[0].error}", "missed")
    shares = [
        (row.share_of_copy, f"{row.dtype}, {row.shape}")
        for row in found
        if row.share_of_copy is not None
    ]
    if not shares:
        return GpuLimit(what, limit, NOTHING, NOTHING)
    worst, where = min(shares)
    return GpuLimit(what, limit, f"{worst:.0%} ({where})", _all_there(missing, worst >= bound))


def _cost(document: GpuFile, network: str) -> Iterable[GpuLimit]:
    for precision, words in PRECISIONS.items():
        head = f"{NETWORKS[network]}, {words}, batch {GPU_LIMITS.batch}"
        runs = [
            run
            for run in document.runs
            if (run.network, run.precision) == (network, precision) and run.what != "graphs"
        ]
        yield _forwards(head, runs)
        yield _times(f"{head}: faster than zennit's EpsilonAlpha2Beta1", runs, ZENNIT)
        yield _times(f"{head}: faster than the reference backend", runs, REFERENCE)


def find_method(run: GpuRun, name: str) -> GpuMethod | None:
    """The row of a method in a run."""
    return next((row for row in run.methods if row.method == name), None)


def _forwards(head: str, runs: Sequence[GpuRun]) -> GpuLimit:
    what, limit = f"{head}: cost", f"at most {GPU_LIMITS.forwards} forwards"
    for run in runs:
        row = find_method(run, NATIVE)
        if run.batch != GPU_LIMITS.batch or run.what != "methods" or row is None:
            continue
        if row.error is not None:
            return GpuLimit(what, limit, f"does not run: {row.error}", "missed")
        if row.cost is not None:
            kept = row.cost <= GPU_LIMITS.forwards
            return GpuLimit(what, limit, f"{row.cost:.2f}", "met" if kept else "missed")
    return GpuLimit(what, limit, NOTHING, NOTHING)


def ratio_to(run: GpuRun, other: str) -> float | None:
    """How many times faster than another method ours is, in one run."""
    ours, theirs = find_method(run, NATIVE), find_method(run, other)
    if ours is None or theirs is None or ours.seconds is None or theirs.seconds is None:
        return None
    return theirs.seconds / ours.seconds


def best_comparison(runs: Iterable[GpuRun], other: str) -> tuple[float, int] | None:
    """Times faster, and the batch: the largest one at which both methods ran, batch 1 left out."""
    found = [
        (run.batch, ratio)
        for run in runs
        if run.batch > 1 and (ratio := ratio_to(run, other)) is not None
    ]
    return max(found, key=lambda pair: pair[0])[::-1] if found else None


def _times(what: str, runs: Sequence[GpuRun], other: str) -> GpuLimit:
    bound = GPU_LIMITS.times_zennit if other == ZENNIT else GPU_LIMITS.times_reference
    limit = f"at least {bound} times"
    found = best_comparison(runs, other)
    if found is None:
        return GpuLimit(what, limit, _why_not(runs, other), NOTHING)
    ratio, batch = found
    at = "" if batch == GPU_LIMITS.batch else f" at batch {batch}"
    return GpuLimit(what, limit, f"{ratio:.1f}{at}", "met" if ratio >= bound else "missed")


def _why_not(runs: Sequence[GpuRun], other: str) -> str:
    for name in (NATIVE, other):
        for run in runs:
            row = find_method(run, name)
            if row is not None and row.error is not None:
                return f"{name}: {row.error}"
    return NOTHING
