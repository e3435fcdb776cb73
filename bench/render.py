"""Result files as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from bench.methods import FURTHER, METHODS, NATIVE, SAME_AS, UNIT
from bench.nets import NETWORKS
from bench.ours import TARGETS
from bench.schema import MethodResult, ModelRun, OpsFile, Provenance
from bench.verdicts import (
    faster_verdict,
    find,
    limit_verdict,
    target_verdict,
    title,
    unsteady,
)


class HasProvenance(Protocol):
    """A run of one network that can be repeated."""

    @property
    def network(self) -> str:
        """Its name in `NETWORKS`."""

    @property
    def provenance(self) -> Provenance:
        """How it was made."""


def render_models(runs: Sequence[ModelRun]) -> str:
    """Cost in forward passes and peak memory, one column per run, one row per method.

    RAP stands beside its peers, this library's other methods in a table of their own.
    """
    caption = (
        "Seconds of a call in forward passes of the same network (the user's unmodified model, "
        "eval mode, no_grad, NCHW input, same threads, same run; medians of interleaved rounds); "
        "in brackets the peak resident memory above the loaded model, in a fresh process, "
        "of the first call, one-time work included, and of the second."
    )
    peers = [name for name in METHODS if name not in FURTHER]
    verdicts = [joined(f(run) for f in (limit_verdict, faster_verdict, unsteady)) for run in runs]
    checked = [_checked(run, peers) for run in runs]
    body = [caption, *_table(runs, peers), _items(checked), _items(verdicts)]
    further = _table(runs, FURTHER)
    if further:
        body += ["The other methods of this library, in the same run:", *further]
        targets = joined(map(target_verdict, runs))
        if targets:
            what = f"{TARGETS} targets less 1, over {TARGETS - 1}"
            body.append(f"RAP of each further target ({what}): {targets}")
        body.append(_items(map(_times_other, runs)))
        body.append(_items(_checked(run, FURTHER) for run in runs))
    return "\n\n".join(part for part in [*body, made_by(runs)] if part)


def _table(runs: Sequence[ModelRun], names: Sequence[str]) -> list[str]:
    """The table of those methods that the runs have, and its notes; empty where there are none."""
    notes: list[str] = []
    columns = [title(run) for run in runs]
    head = [row(["", *columns]), row(["---"] * (len(columns) + 1))]
    lines = []
    for name in names:
        cells = [_method_cell(run, name, notes) for run in runs]
        if any(cells):
            label = METHODS[name].label
            lines.append(row([f"**{label}**" if name == NATIVE else label, *cells]))
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
    lines = [row(head), row(["---"] * len(head))]
    for result in document.results:
        flops = (
            f"{result.gflop_per_second:.0f} ({result.share_of_matmul:.0%})"
            if result.gflop_per_second
            else "-"
        )
        lines.append(
            row(
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


def _method_cell(run: ModelRun, name: str, notes: list[str]) -> str:
    result = find(run, name)
    if result is None:
        return ""
    if result.error is not None:
        notes.append(f"{METHODS[name].label} on {title(run)} does not run: `{result.error}`")
        return "does not run"
    if result.finite is False:
        notes.append(f"{METHODS[name].label} on {title(run)}: the relevance holds NaN or inf.")
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


def _times_other(run: ModelRun) -> str:
    """How many times as much the same rules cost in another library."""
    parts = []
    for name, other in SAME_AS.items():
        ours, theirs = find(run, name), find(run, other)
        if ours is None or theirs is None or not ours.cost or not theirs.cost:
            continue
        times = theirs.cost / ours.cost
        parts.append(f"{METHODS[other].label} costs {times:.1f} times what ours costs")
    return f"{title(run)}: {', '.join(parts)}." if parts else ""


def _checked(run: ModelRun, names: Sequence[str]) -> str:
    checks = [check for check in run.checks if check.method in names]
    if not checks:
        return ""
    worst = max(checks, key=lambda check: check.max_error)
    where = f" ({METHODS[worst.method].label})" if worst.method in FURTHER else ""
    samples = run.input_shape[0]
    some = (
        "" if run.checked_samples == samples else f" on {run.checked_samples} of {samples} samples"
    )
    return (
        f"{title(run)}: checked against the float64 reference before timing{some}, "
        f"cosine {min(check.cosine for check in checks):.7f}, largest error "
        f"{worst.max_error:.1e} of the largest entry{where}, worst conservation error of a node "
        f"{max(check.conservation for check in checks):.1e}."
    )


def _items(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences if sentence)


def joined(sentences: Iterable[str]) -> str:
    """A paragraph of the sentences that are not empty."""
    return " ".join(sentence for sentence in sentences if sentence)


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def made_by(runs: Iterable[HasProvenance]) -> str:
    """How to repeat the runs; once where they were made by one command."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        labels.setdefault(_footer(run.provenance), []).append(NETWORKS[run.network].label)
    if len(labels) == 1:
        return next(iter(labels))
    return "\n\n".join(
        f"{', '.join(dict.fromkeys(named))}: {footer[0].lower()}{footer[1:]}"
        for footer, named in labels.items()
    )


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
