"""Result files as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.limits import COST_LIMITS, STEADY
from bench.methods import FURTHER, METHODS, NATIVE, SAME_AS, UNIT
from bench.nets import NETWORKS
from bench.ours import RAP_TARGETS, TARGETS
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
    """Cost in forward passes and peak memory, one column per network, one row per method.

    RAP stands beside its peers, this library's other methods in a table of their own.
    """
    caption = (
        "Seconds of a call in forward passes of the same network (the user's unmodified model, "
        "eval mode, no_grad, NCHW input, same threads, same run; medians of interleaved rounds); "
        "in brackets the peak resident memory above the loaded model, in a fresh process, "
        "of the first call, one-time work included, and of the second."
    )
    peers = [name for name in METHODS if name not in FURTHER]
    verdicts = [text for run in document.runs for text in (limit_verdict(run), unsteady(run))]
    checked = [_checked(run, peers) for run in document.runs]
    body = [caption, *_table(document, peers), _joined(checked), _joined(verdicts)]
    further = _table(document, FURTHER)
    if further:
        body += ["The other methods of this library, in the same run:", *further]
        targets = _joined(map(_further_target_text, document.runs))
        if targets:
            what = f"{TARGETS} targets less 1, over {TARGETS - 1}"
            body.append(f"RAP of each further target ({what}): {targets}")
        body.append(_joined(map(_times_other, document.runs)))
        body.append(_joined(_checked(run, FURTHER) for run in document.runs))
    return "\n\n".join(part for part in [*body, _footer(document.provenance)] if part)


def _table(document: ModelsFile, names: Sequence[str]) -> list[str]:
    """The table of those methods that the file has, and its notes; empty where it has none."""
    notes: list[str] = []
    columns = [_column_title(run) for run in document.runs]
    head = [_row(["", *columns]), _row(["---"] * (len(columns) + 1))]
    lines = []
    for name in names:
        cells = [_method_cell(run, name, notes) for run in document.runs]
        if any(cells):
            label = METHODS[name].label
            lines.append(_row([f"**{label}**" if name == NATIVE else label, *cells]))
    return ["\n".join([*head, *lines]), *notes] if lines else []


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


def further_target(run: ModelRun) -> float | None:
    """Forward passes of each target of RAP after the first; None where it was not measured."""
    one, several = _find(run, NATIVE), _find(run, RAP_TARGETS)
    if one is None or several is None or one.cost is None or several.cost is None:
        return None
    return (several.cost - one.cost) / (TARGETS - 1)


def target_verdict(run: ModelRun) -> str:
    """One sentence that compares a further target with its limit, or '' where there is none."""
    limit = COST_LIMITS.get(run.network)
    if limit is None or limit.further_target is None or run.input_shape[0] != limit.batch:
        return ""
    several, label = _find(run, RAP_TARGETS), NETWORKS[run.network].label
    if several is not None and several.cost is None:
        return f"{label}: EXCEEDS its limit, for it does not run."
    cost = further_target(run)
    if cost is None:
        return ""
    return f"{label}: {_compare('cost', cost, limit.further_target, 'forwards')}."


def within_limits(run: ModelRun) -> bool:
    """Whether the run is steady and no limit that applies to it is exceeded."""
    verdicts = limit_verdict(run) + target_verdict(run)
    return not unsteady(run) and "EXCEEDS" not in verdicts


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


def _further_target_text(run: ModelRun) -> str:
    cost = further_target(run)
    verdict = target_verdict(run)
    if not verdict and cost is not None:
        verdict = f"{NETWORKS[run.network].label}: cost {cost:.2f} forwards."
    return verdict


def _times_other(run: ModelRun) -> str:
    """How many times as much the same rules cost in another library."""
    parts = []
    for name, other in SAME_AS.items():
        ours, theirs = _find(run, name), _find(run, other)
        if ours is None or theirs is None or not ours.cost or not theirs.cost:
            continue
        times = theirs.cost / ours.cost
        parts.append(f"{METHODS[other].label} costs {times:.1f} times what ours costs")
    return f"{NETWORKS[run.network].label}: {', '.join(parts)}." if parts else ""


def _checked(run: ModelRun, names: Sequence[str]) -> str:
    checks = [check for check in run.checks if check.method in names]
    if not checks:
        return ""
    worst = max(checks, key=lambda check: check.max_error)
    where = f" ({METHODS[worst.method].label})" if worst.method in FURTHER else ""
    return (
        f"{NETWORKS[run.network].label}: checked against the float64 reference before timing, "
        f"cosine {min(check.cosine for check in checks):.7f}, largest error "
        f"{worst.max_error:.1e} of the largest entry{where}, worst conservation error of a node "
        f"{max(check.conservation for check in checks):.1e}."
    )


def _joined(sentences: Iterable[str]) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


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
