"""The promises of the tensor-core convolutions: met, missed or not measured. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from bench.gpu.plan import NETWORKS, PRECISIONS
from bench.gpu.results import GpuFile, GpuLimit, GpuMethod, GpuRun
from bench.limits import GPU_LIMITS

# As in bench.gpu.methods, which imports torch.
NATIVE, FUSED, FUSED_TARGETS, FUSED_GRAPH = (
    "rap",
    "rap_fused",
    "rap_fused_targets",
    "rap_fused_graph",
)
UNIT_GRAPH = "forward_graph"
# As in bench.ours.
TARGETS = 5
FAST = ("bfloat16", "tf32")


def fused_verdicts(document: GpuFile) -> Iterable[GpuLimit]:
    """All of them, in the order of their worth."""
    yield _errors(document)
    yield _share(document)
    for network in NETWORKS:
        for precision in FAST:
            yield from _costs(document, network, precision)


def _errors(document: GpuFile) -> GpuLimit:
    what = "tensor-core convolutions against float64"
    limit = "errors no larger than those of cuDNN's path"
    rows = [row for row in document.fused if row.max_error is not None and row.library_error]
    if wrong := [row for row in document.fused if row.error is not None]:
        return GpuLimit(what, limit, f"{wrong[0].name}: {wrong[0].error}", "missed")
    if not rows:
        return GpuLimit(what, limit, "not measured", "not measured")
    ratios = [
        ((r.max_error or 0) / (r.library_error or 1), f"{r.name}, {r.precision}") for r in rows
    ]
    worst, where = max(ratios)
    text = f"worst {worst:.2f} times ({where}), {len(rows)} layers"
    return GpuLimit(what, limit, text, "met" if worst <= 1 else "missed")


def _share(document: GpuFile) -> GpuLimit:
    least, channels = GPU_LIMITS.fused_share, GPU_LIMITS.fused_channels
    what = f"forward kernel on 3 x 3 layers with {channels} channels and more, bfloat16"
    limit = f"at least {least:.0%} of a matrix product"
    shares = [
        (row.quotient_share, row.name)
        for row in document.fused
        if row.precision == "bfloat16" and row.quotient_share is not None and _is_wide(row.weight)
    ]
    if not shares:
        return GpuLimit(what, limit, "not measured", "not measured")
    worst, where = min(shares)
    return GpuLimit(what, limit, f"{worst:.0%} ({where})", "met" if worst >= least else "missed")


def _is_wide(weight: str) -> bool:
    outputs, inputs, *kernel = map(int, weight.split(" x "))
    return kernel == [3, 3] and min(outputs, inputs) >= GPU_LIMITS.fused_channels


def _costs(document: GpuFile, network: str, precision: str) -> Iterable[GpuLimit]:
    head = f"{NETWORKS[network]}, {PRECISIONS[precision]}"
    runs = [r for r in document.runs if (r.network, r.precision) == (network, precision)]
    large = [r for r in runs if r.batch == GPU_LIMITS.batch and r.what == "methods"]
    single = [r for r in runs if r.batch == 1 and r.what == "graphs"]
    batch = f"{head}, batch {GPU_LIMITS.batch}, tensor cores"
    own, library = _cost(large, FUSED), _cost(large, NATIVE)
    yield _at_most(f"{batch}: cost", own, GPU_LIMITS.fused_forwards)
    yield _at_most(f"{batch}: below cuDNN's path", own, library)
    several = _cost(large, FUSED_TARGETS)
    further = None if own is None or several is None else (several - own) / (TARGETS - 1)
    yield _at_most(f"{batch}: each further target", further, GPU_LIMITS.fused_target_forwards)
    graph, unit = _seconds(single, FUSED_GRAPH), _seconds(single, UNIT_GRAPH)
    cost = None if graph is None or not unit else graph / unit
    what = f"{head}, batch 1, captured graph, tensor cores: cost in captured forwards"
    yield _at_most(what, cost, GPU_LIMITS.fused_graph_forwards)


def _find(runs: Iterable[GpuRun], name: str) -> GpuMethod | None:
    return next((row for run in runs for row in run.methods if row.method == name), None)


def _cost(runs: Iterable[GpuRun], name: str) -> float | None:
    row = _find(runs, name)
    return None if row is None else row.cost


def _seconds(runs: Iterable[GpuRun], name: str) -> float | None:
    row = _find(runs, name)
    return None if row is None else row.seconds


def _at_most(what: str, measured: float | None, most: float | None) -> GpuLimit:
    limit = "-" if most is None else f"at most {most:.2f} forwards"
    if measured is None or most is None:
        return GpuLimit(what, limit, "not measured", "not measured")
    return GpuLimit(what, limit, f"{measured:.2f}", "met" if measured <= most else "missed")
