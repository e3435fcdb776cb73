"""Cost and peak memory of whole networks, in forward passes of the same network.

    python -m bench.models -o bench/results/models.json
    python -m bench.models --model vgg16 --batch 1 --batch 4 --merge bench/results/models.json

For each network and batch correctness is checked first; then every method that runs is timed in
interleaved rounds of one process, and measured for memory in a process of its own. See
bench/README.md.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click
import torch

from bench.check import WrongResultError
from bench.machine import command_line, provenance
from bench.merging import merge_option, merged, runs_of
from bench.methods import METHODS, UNIT, default_methods
from bench.nets import MEASURED, NETWORKS
from bench.render import render_models
from bench.run import run_network
from bench.schema import ModelRun, ModelsFile, write
from bench.verdicts import within_limits

BATCHES = (1, 4, 16)


@click.command(help="Measure attribution methods on whole networks, in forward passes.")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice(list(NETWORKS)),
    help="Repeatable. Default: " + ", ".join(MEASURED) + ".",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1),
    default=BATCHES,
    show_default=True,
    help="Repeatable.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="Repeatable. Default: all at batch 4; at others RAP, its peers and LRP-epsilon.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Interleaved rounds.",
)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="Default: torch's.")
@click.option("--memory/--no-memory", default=True, show_default=True)
@click.option("--enforce", is_flag=True, help="Fail where a limit is exceeded or the unit varied.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=None)
@merge_option("network and batch")
def main(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    methods: tuple[str, ...],
    repeats: int,
    threads: int | None,
    memory: bool,
    enforce: bool,
    output: Path | None,
    target: Path | None,
) -> None:
    """Run the measurement; the text for users is the command's help."""
    if threads is not None:
        torch.set_num_threads(threads)
    measured_before = [] if target is None else runs_of(target, ModelsFile)
    made_by = provenance(command_line("bench.models", sys.argv[1:]))
    runs: list[ModelRun] = []
    for network, batch in itertools.product(models or MEASURED, batches):
        # The unit is always measured, whatever is chosen.
        chosen = default_methods(network, batch)
        if methods:
            chosen = [name for name in METHODS if name == UNIT or name in methods]
        try:
            run = run_network(network, batch, chosen, repeats, memory, made_by)
        except WrongResultError as error:
            raise click.ClickException(
                f"{network}, batch {batch}: nothing was timed: {error}"
            ) from error
        runs.append(run)
        if target is not None:
            write(_document([*measured_before, *runs]), target)
    if output is not None:
        write(_document(runs), output)
    for batch in dict.fromkeys(batches):
        click.echo(render_models([run for run in runs if run.input_shape[0] == batch]))
    if enforce and not all(within_limits(run) for run in runs):
        raise click.ClickException("a limit is exceeded, or the machine was busy")


def _place(run: ModelRun) -> tuple[int, int]:
    """Which run this is, and where it stands in the file."""
    return list(NETWORKS).index(run.network), run.input_shape[0]


def _document(runs: list[ModelRun]) -> ModelsFile:
    chosen = merged(runs, _place, lambda run: run.forward_spread)
    return ModelsFile("models", ModelsFile.CURRENT, chosen)


if __name__ == "__main__":
    main()
