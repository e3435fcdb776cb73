"""Result files as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from bench.limits import COST_LIMITS, STEADY
from bench.methods import METHODS, NATIVE, UNIT
from bench.nets import NETWORKS
from bench.schema import (
    MethodResult,
    ModelRun,
    ModelsFile,
    OpsFile,
    Provenance,
    ResultsFile,
)


def render(documents: Sequence[ResultsFile]) -> str:
    """One Markdown section per result file, in the order given."""
    parts = [
        render_models(document) if isinstance(document, ModelsFile) else render_ops(document)
        for document in documents
    ]
    return "\n\n".join(parts)


def render_models(document: ModelsFile) -> str:
    """Cost in forward passes and peak memory, one column per network, one row per method."""
    notes: list[str] = []
    columns = [_column_title(run) for run in document.runs]
    lines = [_row(["", *columns]), _row(["---"] * (len(columns) + 1))]
    for name in METHODS:
        cells = [_method_cell(run, name, notes) for run in document.runs]
        if any(cells):
            label = METHODS[name].label
            lines.append(_row([f"**{label}**" if name == NATIVE else label, *cells]))
    text = "\n".join(lines)
    caption = (
        "Seconds of a call in forward passes of the same network (the user's unmodified model, "
        "eval mode, no_grad, NCHW input, same threads, same run; medians of interleaved rounds); "
        "in brackets the peak resident memory above the loaded model, in a fresh process, "
        "of the first call, one-time work included, and of the second."
    )
    verdicts = [text for run in document.runs for text in (limit_verdict(run), unsteady(run))]
    checked = [_checked(run) for run in document.runs if run.checks]
    body = [caption, text, *notes, " ".join(checked), " ".join(text for text in verdicts if text)]
    return "\n\n".join(part for part in [*body, _footer(document.provenance)] if part)


def render_ops(document: OpsFile) -> str:
    """Native against reference for each shape."""
    head = [
        "shape",
        "op",
        "input",
        "native, ms",
        "reference, ms",
        "times faster",
        "GB/s (of a copy)",
        "GFLOP/s (of a matmul)",
    ]
    lines = [_row(head), _row(["---"] * len(head))]
    for result in document.results:
        flops = (
            f"{result.gflop_per_second:.0f} ({result.share_of_matmul:.0%})"
            if result.gflop_per_second
            else "-"
        )
        lines.append(
            _row(
                [
                    result.name,
                    f"`{result.op}`",
                    result.shape,
                    f"{result.native_seconds * 1e3:.2f}",
                    f"{result.reference_seconds * 1e3:.2f}",
                    f"{result.ratio:.1f}",
                    f"{result.gb_per_second:.1f} ({result.share_of_copy:.0%})",
                    flops,
                ]
            )
        )
    peaks = document.peaks
    caption = (
        "Each op on one layer's shape, float32, native against the pure-torch reference "
        f"(medians of {document.rounds} interleaved rounds). Bytes: every tensor argument and "
        "result once; repeated calls find small tensors in the cache, so their share of a copy can "
        "exceed 100 %. Operations: the matrix products of the rule. In the same run a copy reached "
        f"{peaks.copy_gb_per_second:.1f} GB/s and a 3072 x 3072 matrix product "
        f"{peaks.matmul_gflop_per_second:.0f} GFLOP/s."
    )
    return "\n\n".join([caption, "\n".join(lines), _footer(document.provenance)])


def limit_verdict(run: ModelRun) -> str:
    """One sentence that compares rapkernels with its limit, or '' where there is none."""
    limit = COST_LIMITS.get(run.network)
    result = _find(run, NATIVE)
    if limit is None or result is None or run.input_shape[0] != limit.batch:
        return ""
    if result.cost is None:
        return f"{NETWORKS[run.network].label}: EXCEEDS its limits, for it does not run."
    parts = [_compare("cost", result.cost, limit.forwards, "forwards")]
    if result.memory is not None:
        peak = max(result.memory.first_call_gb, result.memory.second_call_gb)
        parts.append(_compare("peak memory", peak, limit.memory_gb, "GB"))
    return f"{NETWORKS[run.network].label}: {', '.join(parts)}."


def within_limits(run: ModelRun) -> bool:
    """Whether the run is steady and no limit that applies to it is exceeded."""
    return not unsteady(run) and "EXCEEDS" not in limit_verdict(run)


def unsteady(run: ModelRun) -> str:
    """A warning where the unit itself varied, or ''."""
    if run.forward_spread <= STEADY:
        return ""
    return (
        f"{NETWORKS[run.network].label}: the unit varied by {run.forward_spread:.0%} over the "
        "rounds, so something else ran on this machine: **the costs are not usable**."
    )


def _compare(what: str, value: float, limit: float, unit: str) -> str:
    relation = "within" if value <= limit else "EXCEEDS"
    return f"{what} {value:.2f} {relation} the limit of {limit} {unit}"


def _column_title(run: ModelRun) -> str:
    return f"{NETWORKS[run.network].label}, batch {run.input_shape[0]}"


def _method_cell(run: ModelRun, name: str, notes: list[str]) -> str:
    result = _find(run, name)
    if result is None:
        return ""
    if result.error is not None:
        notes.append(
            f"{METHODS[name].label} on {NETWORKS[run.network].label} does not run: `{result.error}`"
        )
        return "does not run"
    if result.finite is False:
        notes.append(
            f"{METHODS[name].label} on {NETWORKS[run.network].label}: "
            "the relevance holds NaN or inf."
        )
    cost = _cost_text(run, result)
    if result.memory is None:
        return cost
    memory = result.memory
    return f"{cost} ({memory.first_call_gb:.2f}, {memory.second_call_gb:.2f} GB)"


def _cost_text(run: ModelRun, result: MethodResult) -> str:
    if result.method == UNIT:
        return f"1 = {run.forward_seconds * 1e3:.0f} ms"
    text = "-" if result.cost is None else f"{result.cost:.1f}"
    return f"**{text}**" if result.method == NATIVE else text


def _checked(run: ModelRun) -> str:
    worst = max(run.checks, key=lambda check: check.max_error)
    return (
        f"{NETWORKS[run.network].label}: checked against the float64 reference before timing, "
        f"cosine {min(check.cosine for check in run.checks):.7f}, largest error "
        f"{worst.max_error:.1e} of the largest entry, worst conservation error of a node "
        f"{max(check.conservation for check in run.checks):.1e}."
    )


def _find(run: ModelRun, name: str) -> MethodResult | None:
    return next((result for result in run.results if result.method == name), None)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _footer(provenance: Provenance) -> str:
    machine = provenance.machine
    packages = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    commit = provenance.commit[:10] if provenance.commit else "unknown"
    changed = " with local changes" if provenance.dirty else ""
    return (
        f"Made by `{provenance.command}` on {provenance.date[:10]}, commit {commit}{changed}, "
        f"{machine.cpu} ({machine.physical_cores} cores, {machine.torch_threads} threads, "
        f"{machine.instruction_set}, {machine.memory_gb:.0f} GB); {packages}."
    )
