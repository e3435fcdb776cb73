"""Each op on the layer shapes of real networks, native against reference.

    python -m bench.ops -o bench/results/ops.json
    python -m bench.ops --shape vgg16.fc6

The native result is compared with the float64 reference before anything is timed.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from bench.cases import build, comparable, max_error
from bench.check import WrongResultError
from bench.limits import OP_MAX_ERROR
from bench.machine import command_line, provenance
from bench.render import render_ops
from bench.schema import VERSION, OpResult, OpsFile, Peaks, write
from bench.shapes import LayerShape, layer_shapes
from bench.timing import interleaved

COPY_ELEMENTS = 2**26
MATMUL_SIZE = 3072


def measure_peaks(rounds: int, elements: int = COPY_ELEMENTS, size: int = MATMUL_SIZE) -> Peaks:
    """What a plain copy (bytes read and written) and a large float32 matmul reach here."""
    source, target = torch.rand(elements), torch.empty(elements)
    a, b = torch.rand(size, size), torch.rand(size, size)
    calls = {"copy": partial(target.copy_, source), "matmul": partial(torch.mm, a, b)}
    times = {name: statistics.median(v) for name, v in interleaved(calls, rounds).items()}
    return Peaks(2 * 4 * elements / times["copy"] / 1e9, 2 * size**3 / times["matmul"] / 1e9)


@torch.no_grad()
def run_shape(
    shape: LayerShape, native: Any, reference: Any, rounds: int, peaks: Peaks
) -> OpResult:
    """Check, then time, one op; `native` and `reference` are modules with the ops' signatures."""
    case = build(shape)
    exact = case.in_float64()
    slow = getattr(reference, shape.op)
    expected = comparable(shape.op, slow(*exact.arguments))
    del exact
    raw = getattr(native, shape.op)(*case.arguments)
    error = max_error(comparable(shape.op, raw), expected)
    if not error <= OP_MAX_ERROR:
        raise WrongResultError(
            f"{shape.name}: {shape.op} differs from the float64 reference by {error:.2e} of the "
            f"largest entry, allowed at most {OP_MAX_ERROR:g}"
        )
    moved = case.least_bytes([raw] if isinstance(raw, Tensor) else list(raw))
    del raw, expected
    calls = {
        "native": partial(getattr(native, shape.op), *case.arguments),
        "reference": partial(slow, *case.arguments),
    }
    times = {name: statistics.median(v) for name, v in interleaved(calls, rounds).items()}
    rate = moved / times["native"] / 1e9
    speed = case.operations / times["native"] / 1e9
    return OpResult(
        name=shape.name,
        network=shape.network,
        op=shape.op,
        shape=" x ".join(map(str, shape.x)),
        max_error=error,
        native_seconds=times["native"],
        reference_seconds=times["reference"],
        ratio=times["reference"] / times["native"],
        gb_per_second=rate,
        share_of_copy=rate / peaks.copy_gb_per_second,
        gflop_per_second=speed,
        share_of_matmul=speed / peaks.matmul_gflop_per_second,
    )


def choose(names: Sequence[str], ops: Sequence[str]) -> list[LayerShape]:
    """The rows of ``shapes.csv`` with one of these names and one of these ops (none: all)."""
    rows = layer_shapes()
    unknown = [n for n in names if n not in {row.name for row in rows}]
    unknown += [op for op in ops if op not in {row.op for row in rows}]
    if unknown:
        raise click.BadParameter(f"not in bench/shapes.csv: {', '.join(unknown)}")
    return [r for r in rows if (not names or r.name in names) and (not ops or r.op in ops)]


@click.command(help="Measure each op on named layer shapes, native against reference.")
@click.option("--shape", "names", multiple=True, help="A name in bench/shapes.csv. Repeatable.")
@click.option("--op", "ops", multiple=True, help="An op's name. Repeatable.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="Default: torch's.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=None)
def main(
    names: tuple[str, ...],
    ops: tuple[str, ...],
    repeats: int,
    threads: int | None,
    output: Path | None,
) -> None:
    """Run the measurement; the text for users is the command's help."""
    if threads is not None:
        torch.set_num_threads(threads)
    rows = choose(names, ops)
    info = importlib.import_module("rapkernels").build_info()
    if not info["extension"]:
        raise click.ClickException(f"the native ops are not loaded: {info['error']}")
    native = importlib.import_module("rapkernels.ops")
    reference = importlib.import_module("rapkernels.reference")
    peaks = measure_peaks(repeats)
    results = []
    for row in rows:
        click.echo(f"{row.name}: {row.op}", err=True)
        try:
            results.append(run_shape(row, native, reference, repeats, peaks))
        except WrongResultError as error:
            raise click.ClickException(f"nothing was written: {error}") from error
    command = command_line("bench.ops", sys.argv[1:])
    document = OpsFile("ops", VERSION, provenance(command), repeats, peaks, results)
    if output is not None:
        write(document, output)
    click.echo(render_ops(document))


if __name__ == "__main__":
    main()
