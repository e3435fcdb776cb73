"""Convolutions layer by layer: kernels of our own on the tensor cores beside cuDNN's.

    python -m bench.gpu.fused                       # all layers of bench.gpu.fused_plan
    python -m bench.gpu.fused --only resnet50.layer2

Both paths run the same op, `relprop_conv`, in interleaved rounds of one process, after both were
compared with the float64 reference; the kernels' own times are those of torch's profiler.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import click
import torch
from torch import Tensor

from bench.cases import Case, build
from bench.gpu.clock import clock_of, sample
from bench.gpu.counts import kernel_seconds
from bench.gpu.fused_plan import FusedLayer, fused_layers, tiny_layers
from bench.gpu.fused_switch import fused_conv
from bench.gpu.messages import Reporter, finite
from bench.gpu.ops import Tools, check, measure_peaks
from bench.gpu.plan import size_text
from bench.gpu.results import GpuFusedLayer
from bench.gpu.settings import (
    Deadline,
    precision,
    require_context,
    stage,
    stage_options,
    storage,
)
from bench.machine import one_line

# A path is timed where it is at least as right as this: sums in bfloat16 are divided by.
LEAST_COSINE = 0.95


def measure_layer(layer: FusedLayer, tools: Tools) -> GpuFusedLayer:
    """Check both paths on one layer, then time them."""
    row = unmeasured(layer)
    with precision(layer.precision), torch.no_grad():
        case = build(layer.shape, tools.clock.device, storage(layer.precision), channels_last=True)
        step = partial(tools.native.relprop_conv, *case.arguments)
        calls: dict[str, Callable[[], object]] = {
            "own": partial(_with, True, step),
            "library": partial(_with, False, step),
        }
        (own, cosine), (library, _) = (_errors(case, call, tools) for call in calls.values())
        row = replace(row, max_error=finite(own), library_error=finite(library))
        if not cosine >= LEAST_COSINE:
            return replace(row, error=f"cosine {cosine:.4f} with the float64 reference")
        samples = sample(calls, tools.clock, tools.seconds, 5, 100, queued=True)
        seconds = {name: statistics.median(values) for name, values in samples.items()}
        row = replace(row, seconds=seconds["own"], library_seconds=seconds["library"])
        return _kernels(row, layer, case, calls["own"], tools)


def _with(asked: bool, step: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    with fused_conv(asked):
        return step()


def _errors(case: Case, call: Callable[[], object], tools: Tools) -> tuple[float, float]:
    found = call()
    assert isinstance(found, tuple | list)
    return check(case, found, tools.reference)


def _kernels(
    row: GpuFusedLayer, layer: FusedLayer, case: Case, call: Callable[[], object], tools: Tools
) -> GpuFusedLayer:
    """The two kernels alone: each makes two products of the layer's size for x >= 0."""
    found = kernel_seconds(call, ("quotient_kernel", "contribution_kernel"))
    quotient, contribution = found["quotient_kernel"], found["contribution_kernel"]
    if not quotient or not contribution:
        return row
    peak = tools.peaks.matmul_tflop_per_second[layer.precision] * 1e12
    products = 2 * layer.shape.operations()
    x, weight, relevance = (case.arguments[i] for i in (0, 1, 3))
    sizes = [tensor.numel() * tensor.element_size() for tensor in (x, weight, relevance)]
    # x, w, R, S+ and S- forward; S+, S-, w, x and C back.
    moved = 3 * sizes[0] + 2 * sizes[1] + 5 * sizes[2]
    rate = moved / (quotient + contribution) / 1e9
    return replace(
        row,
        quotient_share=products / quotient / peak,
        contribution_share=products / contribution / peak,
        share_of_copy=rate / tools.peaks.copy_gb_per_second,
    )


def unmeasured(layer: FusedLayer, error: str | None = None) -> GpuFusedLayer:
    """The row before anything is known of it."""
    return GpuFusedLayer(
        name=layer.shape.name,
        network=layer.shape.network,
        precision=layer.precision,
        shape=size_text(layer.shape.x),
        weight=size_text(layer.shape.weight),
        stride=layer.shape.stride,
        error=error,
        max_error=None,
        library_error=None,
    )


def measure_layers(
    layers: Sequence[FusedLayer], tools: Tools, reporter: Reporter, deadline: Deadline
) -> int:
    """Measure all layers and report each; returns how many are wrong or raised."""
    faults = 0
    for layer in layers:
        deadline.check()
        if not reporter.begin(layer.key):
            continue
        try:
            row = measure_layer(layer, tools)
        except Exception as error:  # whatever it is, the other layers are still worth measuring
            row = unmeasured(layer, one_line(error))
        reporter.row("fused", row)
        reporter.end(layer.key)
        reporter.say(_line(row))
        faults += row.error is not None
        require_context(tools.clock.device.type)
        tools.clock.release()
    return faults


def _line(row: GpuFusedLayer) -> str:
    head = f"{row.name} {row.precision} {row.shape}"
    if row.error is not None or row.seconds is None or row.library_seconds is None:
        return f"{head}: {row.error or 'not timed'}"
    text = f"{head}: {row.seconds * 1e3:.3f} ms, cuDNN's path {row.library_seconds * 1e3:.3f} ms"
    if row.quotient_share is not None and row.contribution_share is not None:
        text += f", {row.quotient_share:.0%} and {row.contribution_share:.0%} of a matmul"
    return text


@click.command(help="Measure convolutions of our own beside cuDNN's, layer by layer.")
@click.option("--only", default="", help="Layers whose key holds this text.")
@stage_options
def main(
    only: str, device: str, tiny: bool, seconds: float, marked: bool, done: tuple[str, ...]
) -> None:
    """Run the stage; the text for users is the command's help."""
    reporter = Reporter(marked, frozenset(done))
    deadline = Deadline.after(seconds)
    chosen = [layer for layer in (tiny_layers() if tiny else fused_layers()) if only in layer.key]
    with stage(reporter):
        clock = clock_of(device)
        small = {"elements": 2**16, "size": 64, "seconds": 0.01} if tiny else {"seconds": 0.3}
        peaks = measure_peaks(clock, **small)  # type: ignore[arg-type]
        clock.release()
        tools = Tools(
            importlib.import_module("rapkernels.ops"),
            importlib.import_module("rapkernels.reference"),
            clock,
            peaks,
            0.005 if tiny else 0.2,
        )
        faults = measure_layers(chosen, tools, reporter, deadline)
        reporter.detail(f"{len(chosen)} layers, {faults} wrong")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
