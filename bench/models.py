"""Cost and peak memory of whole networks, in forward passes of the same network.

    python -m bench.models --model vgg16 --batch 4 -o bench/results/models.json

For each network correctness is checked first; then every method that runs is timed in interleaved
rounds of one process, and measured for memory in a process of its own. See bench/README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from bench.check import WrongResultError
from bench.machine import command_line, provenance
from bench.methods import METHODS, UNIT
from bench.nets import MEASURED, NETWORKS
from bench.render import render_models, within_limits
from bench.run import run_network
from bench.schema import VERSION, ModelsFile, write


@click.command(help="Measure attribution methods on whole networks, in forward passes.")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice(list(NETWORKS)),
    help="Repeatable. Default: " + ", ".join(MEASURED) + ".",
)
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="Repeatable. Default: all.",
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
def main(
    models: tuple[str, ...],
    batch: int,
    methods: tuple[str, ...],
    repeats: int,
    threads: int | None,
    memory: bool,
    enforce: bool,
    output: Path | None,
) -> None:
    """Run the measurement; the text for users is the command's help."""
    if threads is not None:
        torch.set_num_threads(threads)
    # The unit is always measured, whatever is chosen.
    chosen = [name for name in METHODS if name == UNIT or not methods or name in methods]
    runs = []
    for network in models or MEASURED:
        try:
            runs.append(run_network(network, batch, chosen, repeats, memory))
        except WrongResultError as error:
            raise click.ClickException(f"{network}: nothing was timed: {error}") from error
    command = command_line("bench.models", sys.argv[1:])
    document = ModelsFile("models", VERSION, provenance(command), runs)
    if output is not None:
        write(document, output)
    click.echo(render_models(document))
    if enforce and not all(within_limits(run) for run in runs):
        raise click.ClickException("a limit is exceeded, or the machine was busy")


if __name__ == "__main__":
    main()
