"""A GPU run as Markdown. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.gpu.fused_verdicts import FUSED
from bench.gpu.plan import LINEAR, LINEAR_BATCHES, NETWORKS, PRECISIONS, TIMED_DTYPES
from bench.gpu.results import GpuFile, GpuLimit, GpuOp, GpuRun
from bench.gpu.verdicts import NATIVE, REFERENCE, ZENNIT, best_comparison, find_method

NOT_MEASURED = (
    "CUDA: not measured. `bench/gpu.sh OUTDIR` measures on a machine with a GPU; its `gpu.json` "
    "goes to `bench/results/`."
)
MOST_LISTED = 8
_HEAD = (
    "network",
    "precision",
    "batch",
    "forward, ms",
    "RAP, forwards",
    "by our tensor-core kernels",
    "input x gradient, forwards",
    "times faster than zennit",
    "than our reference",
    "RAP's memory, GB",
    "zennit's",
)


def render_gpu(document: GpuFile, full: bool = False) -> str:
    """Networks, kernels and verdicts; in full also every op, every promise and the stages."""
    parts = [_caption(document), _networks(document), _notes(document), _kernels(document)]
    if full:
        parts += [_fused(document), _other_kernels(document), _faults(document)]
        parts += [_counts(document)]
        parts += [_limits(document.limits), _stages(document)]
    return "\n\n".join(part for part in [*parts, _summary(document), _footer(document)] if part)


def _caption(document: GpuFile) -> str:
    gpu = document.gpu
    text = (
        f"On one {gpu.name}: cost in forward passes of the same network at the same precision, "
        "both channels-last, in eval mode and no_grad (medians of interleaved rounds, one process, "
        "CUDA events, L2 flushed). Memory is what tensors hold at most above the loaded model and "
        "input, in a second call. zennit is EpsilonAlpha2Beta1."
    )
    dry = "**Tried on the CPU, so the figures mean nothing.** " if document.dry else ""
    return dry + text


def _networks(document: GpuFile) -> str:
    rows = []
    for network in _in_order(NETWORKS, (run.network for run in document.runs)):
        for precision, words in PRECISIONS.items():
            runs = [r for r in document.runs if (r.network, r.precision) == (network, precision)]
            for run in runs:
                if run.what == "methods":
                    rows.append(_network_row(run, runs, NETWORKS.get(network, network), words))
    return _table(_HEAD, rows) if rows else ""


def _network_row(run: GpuRun, runs: Sequence[GpuRun], network: str, words: str) -> list[str]:
    same = [other for other in runs if (other.batch > 1) == (run.batch > 1)]
    forward = "-" if run.forward_seconds is None else f"{run.forward_seconds * 1e3:.2f}"
    return [
        network,
        words,
        str(run.batch),
        forward,
        f"**{_cost(run, NATIVE)}**",
        _cost(run, FUSED),
        _cost(run, "input_x_gradient"),
        _times(run, same, ZENNIT),
        _times(run, same, REFERENCE),
        _memory(run, NATIVE),
        _memory(run, ZENNIT),
    ]


def _cost(run: GpuRun, name: str) -> str:
    row = find_method(run, name)
    if row is None:
        return "-"
    return "does not run" if row.cost is None else f"{row.cost:.2f}"


def _times(run: GpuRun, runs: Sequence[GpuRun], other: str) -> str:
    if run.batch == 1:
        ours, theirs = find_method(run, NATIVE), find_method(run, other)
        if ours is None or theirs is None or not ours.seconds or theirs.seconds is None:
            return "-"
        return f"{theirs.seconds / ours.seconds:.1f}"
    found = best_comparison((r for r in runs if r.what != "graphs"), other)
    if found is None:
        return "-"
    ratio, batch = found
    return f"{ratio:.1f}" + ("" if batch == run.batch else f" (batch {batch})")


def _memory(run: GpuRun, name: str) -> str:
    row = find_method(run, name)
    return "-" if row is None or row.second_call_gb is None else f"{row.second_call_gb:.2f}"


def _notes(document: GpuFile) -> str:
    """Graphs, agreement, and whatever did not run."""
    lines = [_graphs(run) for run in document.runs if run.what == "graphs"]
    for row in document.agreements:
        if row.method == NATIVE and row.cosine is not None and row.samples > 1:
            lines.append(
                f"{NETWORKS.get(row.network, row.network)}, {PRECISIONS[row.precision]}: cosine "
                f"{row.cosine:.7f} with float64, largest error {row.max_error:.1e} of the largest "
                "entry."
            )
    lines += [text for run in document.runs if (text := _nchw(run))]
    for run in document.runs:
        lines += [
            f"{row.label} on {NETWORKS.get(run.network, run.network)}, "
            f"{PRECISIONS[run.precision]}, batch {run.batch}: `{row.error}`."
            for row in run.methods
            if row.error is not None and run.what != "graphs"
        ]
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def _nchw(run: GpuRun) -> str:
    row = find_method(run, "forward_nchw")
    if row is None or row.cost is None or run.batch == 1:
        return ""
    where = f"{NETWORKS.get(run.network, run.network)}, {PRECISIONS[run.precision]}"
    return f"{where}, batch {run.batch}: a forward in NCHW takes {row.cost:.2f} of the unit."


def _graphs(run: GpuRun) -> str:
    where = f"{NETWORKS.get(run.network, run.network)}, {PRECISIONS[run.precision]}, batch 1"
    row = find_method(run, "rap_graph")
    if row is None or row.seconds is None:
        return f"{where}: no CUDA graph: `{'not measured' if row is None else row.error}`."
    eager, unit = find_method(run, NATIVE), find_method(run, "forward_graph")
    parts = [f"{where}: replay of a CUDA graph {row.seconds * 1e3:.2f} ms"]
    if eager is not None and eager.seconds is not None:
        parts.append(f"call {eager.seconds * 1e3:.2f} ms")
    if unit is not None and unit.seconds is not None:
        parts.append(f"forward as a graph {unit.seconds * 1e3:.2f} ms")
    return ", ".join(parts) + "."


def _kernels(document: GpuFile) -> str:
    """The rows with a promise."""
    lines = _side_by_side(row for row in document.ops if _is_promised(row))
    if not lines or document.peaks is None:
        return ""
    peaks = document.peaks
    rates = ", ".join(f"{v:.0f} in {k}" for k, v in peaks.matmul_tflop_per_second.items())
    caption = (
        "Kernels: time, and share of the copy bandwidth of the same run "
        f"({peaks.copy_gb_per_second:.0f} GB/s, bytes read and written; matrix products, TFLOP/s: "
        f"{rates}). A linear step counts two reads of its weight."
    )
    return caption + "\n\n" + _table(("shape", "op", "input", *TIMED_DTYPES), lines)


def _other_kernels(document: GpuFile) -> str:
    """All others that were timed."""
    lines = _side_by_side(row for row in document.ops if not _is_promised(row))
    return _table(("shape", "op", "input", *TIMED_DTYPES), lines) if lines else ""


def _fused(document: GpuFile) -> str:
    """Convolutions by kernels of our own on the tensor cores, layer by layer."""
    head = (
        *("layer", "precision", "x", "weight", "stride", "tensor cores, ms", "cuDNN's path, ms"),
        *("forward and back, of a matmul", "of a copy", "error", "cuDNN's path"),
    )
    rows = [
        [
            *(row.name, row.precision, row.shape, row.weight, str(row.stride)),
            *(_milliseconds(row.seconds), _milliseconds(row.library_seconds)),
            f"{_percent(row.quotient_share)}, {_percent(row.contribution_share)}",
            _percent(row.share_of_copy),
            row.error or _small(row.max_error),
            _small(row.library_error),
        ]
        for row in document.fused
    ]
    return _table(head, rows) if rows else ""


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _small(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"


def _is_promised(row: GpuOp) -> bool:
    """Whether a limit is about this row, or about the same in another dtype."""
    small_linear = row.name == LINEAR and int(row.shape.split(" x ")[0]) in LINEAR_BATCHES
    return row.seconds is not None and (row.least_share is not None or small_linear)


def _side_by_side(rows: Iterable[GpuOp]) -> list[list[str]]:
    """One line for each shape, the dtypes beside each other."""
    found: dict[tuple[str, str, str], dict[str, GpuOp]] = {}
    for row in rows:
        if row.seconds is not None:
            found.setdefault((row.name, row.op, row.shape), {})[row.dtype] = row
    return [
        [name, f"`{op}`", shape, *(_share(by_dtype.get(dtype)) for dtype in TIMED_DTYPES)]
        for (name, op, shape), by_dtype in found.items()
    ]


def _share(row: GpuOp | None) -> str:
    if row is None or row.seconds is None or row.share_of_copy is None:
        return "-"
    products = f", {row.share_of_matmul:.0%} of a matmul" if row.share_of_matmul else ""
    return f"{row.seconds * 1e3:.3f} ms, {row.share_of_copy:.0%}{products}"


def _faults(document: GpuFile) -> str:
    """Every op that is wrong, that raised, or whose repeats differ."""
    lines = [
        f"- {row.name}, `{row.op}`, {row.dtype}, {row.shape}: "
        + (row.error or "repeats do not give the same bits")
        for row in document.ops
        if row.error is not None or row.bit_equal is False
    ]
    return "\n".join(lines)


def _limits(limits: Iterable[GpuLimit]) -> str:
    mark = {"met": "met", "missed": "**missed**", "not measured": "not measured"}
    rows = [[row.what, row.limit, row.measured, mark[row.verdict]] for row in limits]
    return _table(("promise", "limit", "measured", ""), rows)


def _counts(document: GpuFile) -> str:
    rows = [
        f"- {NETWORKS.get(row.network, row.network)}, {row.method}, batch {row.batch}: "
        + (
            row.error
            or f"{row.kernel_launches} kernel launches, {row.host_syncs} waits of the host"
        )
        for row in document.counts
    ]
    return "\n".join(rows)


def _stages(document: GpuFile) -> str:
    rows = [[s.name, s.status, f"{s.seconds:.0f}", s.detail] for s in document.stages]
    tools = [[t.tool, t.status, f"{t.seconds:.0f}", t.detail] for t in document.sanitizer]
    return _table(("stage", "", "seconds", ""), rows + tools)


def _summary(document: GpuFile) -> str:
    count = Counter(row.verdict for row in document.limits)
    text = (
        f"Of {len(document.limits)} limits {count['met']} met, {count['missed']} missed, "
        f"{count['not measured']} not measured."
    )
    if missed := [row for row in document.limits if row.verdict == "missed"]:
        listed = "; ".join(f"{row.what} ({row.measured}, limit {row.limit})" for row in missed)
        text += f" Missed: {listed}."
    lacking = [row.what for row in document.limits if row.verdict == "not measured"]
    if 0 < len(lacking) <= MOST_LISTED:
        text += f" Not measured: {'; '.join(lacking)}."
    tests = document.tests
    if tests is not None:
        cut = "" if tests.complete else " (cut off)"
        text += f" Tests on the device: {tests.passed} passed, {tests.failed} failed{cut}."
    checked = "; ".join(
        f"{row.tool} {row.status}" + (f", {row.tests} tests" if row.tests else "")
        for row in document.sanitizer
    )
    return text + (f" compute-sanitizer: {checked}." if checked else "")


def _footer(document: GpuFile) -> str:
    source, gpu = document.provenance, document.gpu
    packages = ", ".join(f"{name} {version}" for name, version in source.versions.items())
    commit = source.commit[:10] if source.commit else "unknown"
    changed = " with local changes" if source.dirty else ""
    clock = gpu.clocks.get("clocks.sm under load")
    parts = [
        f"Made by `{source.command}` on {source.date[:10]}, commit {commit}{changed}, {gpu.name} "
        f"(capability {gpu.capability}, {gpu.multiprocessors} multiprocessors, {gpu.l2_mb:.0f} MB "
        f"of L2, {gpu.memory_gb:.0f} GB{f', {clock} under load' if clock else ''})",
        f"driver {gpu.driver}, CUDA {gpu.cuda}, cuDNN {gpu.cudnn}",
        packages,
    ]
    cut = "" if document.finished else " **The run was cut off.**"
    return "; ".join(parts) + "." + cut


def _in_order(known: Iterable[str], found: Iterable[str]) -> list[str]:
    present = list(dict.fromkeys(found))
    first = [name for name in known if name in present]
    return [*first, *(name for name in present if name not in first)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines
    )
