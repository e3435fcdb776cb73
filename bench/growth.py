"""How the cost of RAP grows with the batch and with targets; it must be linear.

    python -m bench.growth -o bench/results/growth.json
    python -m bench.growth --model resnet50 --merge bench/results/growth.json

All batches of a network, and all numbers of targets, are timed in the same interleaved rounds as a
forward pass of each batch. Correctness is checked first: three targets against the float64
reference, and against these results what every other call gives for the same sample and class.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from bench.check import Truth, WrongResultError, compare
from bench.growth_table import render_growth
from bench.machine import command_line, provenance
from bench.merging import merge_option, merged, runs_of
from bench.methods import METHODS, UNIT
from bench.nets import NETWORKS, load
from bench.ours import NATIVE, OWN, explained, probable
from bench.schema import Growth, GrowthFile, Point, Provenance, write
from bench.timing import interleaved, spread

MEASURED = ("resnet50", "efficientnet_lite0")


def grow_with_batch(
    network: str, largest: int, rounds: int, made_by: Provenance, backend: str = "native"
) -> Growth:
    """Time RAP of 1, 2, 4, ... `largest` samples; raises WrongResultError before any timing."""
    model, x = load(network, largest)
    explainer, forward = OWN[NATIVE].make(model, backend), METHODS[UNIT].prepare(model, x)
    counts = [2**i for i in range(largest.bit_length()) if 2**i <= largest]
    one = x[:1]
    classes = probable(model, one, 1)[:, 0]
    right = _truth(model, one, classes[:, None])
    # The first sample does not depend on those beside it.
    conservation = explained(explainer, one, classes)[1]
    checks = [
        compare(f"{NATIVE}, batch {n}", explainer.attribute(x[:n])[:1], conservation, right)
        for n in counts
    ]
    calls = {n: partial(explainer.attribute, x[:n]) for n in counts}
    units = {n: partial(forward, x[:n]) for n in counts}
    points, steadiness = _timed(calls, units, rounds)
    return Growth(network, "batch", None, made_by, rounds, steadiness, checks, points)


def grow_with_targets(
    network: str, most: int, rounds: int, made_by: Provenance, backend: str = "native"
) -> Growth:
    """Time RAP of 1 to `most` targets of one sample; raises WrongResultError before any timing."""
    model, x = load(network, 1)
    explainer, forward = OWN[NATIVE].make(model, backend), METHODS[UNIT].prepare(model, x)
    classes = probable(model, x, most)
    # The first, the middle and the last: the reference takes one after the other.
    few = sorted({0, most // 2, most - 1})
    right = _truth(model, x, classes[:, few])
    conservation = max(explained(explainer, x, classes[:, i])[1] for i in few)
    calls: dict[int, Callable[[], Tensor]] = {}
    checks = []
    for n in range(1, most + 1):
        calls[n] = partial(explainer.attribute_targets, x, classes[:, :n])
        known = [place for place, i in enumerate(few) if i < n]
        truth = Truth(right.relevance[known], right.targets)
        found = calls[n]().flatten(0, 1)[[few[place] for place in known]]
        checks.append(compare(f"{NATIVE}, {n} targets", found, conservation, truth))
    points, steadiness = _timed(calls, dict.fromkeys(calls, partial(forward, x)), rounds)
    return Growth(network, "targets", 1, made_by, rounds, steadiness, checks, points)


def _truth(model: nn.Module, x: Tensor, classes: Tensor) -> Truth:
    """The float64 reference of several classes of one sample, one class after the other."""
    explainer = OWN[NATIVE].make(copy.deepcopy(model).double(), "reference")
    found = [explained(explainer, x.double(), target)[0] for target in classes.unbind(1)]
    return Truth(torch.cat(found), classes[:, 0])


def _timed(
    calls: Mapping[int, Callable[[], Any]], units: Mapping[int, Callable[[], Any]], rounds: int
) -> tuple[list[Point], float]:
    """All calls and units in the same rounds; and how much the units varied, in the median."""
    names: dict[str, Callable[[], Any]] = {}
    for n, call in calls.items():
        names[f"call {n}"] = call
        names[f"unit {n}"] = units[n]
    samples = interleaved(names, rounds)
    points = [
        Point(n, statistics.median(samples[f"call {n}"]), statistics.median(samples[f"unit {n}"]))
        for n in calls
    ]
    return points, statistics.median(spread(samples[f"unit {n}"]) for n in calls)


def _place(run: Growth) -> tuple[int, str]:
    """Which run this is, and where it stands in the file."""
    return list(NETWORKS).index(run.network), run.grows


@click.command(help="Measure how the cost of RAP grows with the batch and with targets.")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice(list(NETWORKS)),
    help="Repeatable. Default: " + ", ".join(MEASURED) + ".",
)
@click.option("--batch", "largest", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--targets", type=click.IntRange(min=2), default=20, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="Default: torch's.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=None)
@merge_option("network")
def main(
    models: tuple[str, ...],
    largest: int,
    targets: int,
    repeats: int,
    threads: int | None,
    output: Path | None,
    target: Path | None,
) -> None:
    """Run the measurement; the text for users is the command's help."""
    if threads is not None:
        torch.set_num_threads(threads)
    measured_before = [] if target is None else runs_of(target, GrowthFile)
    made_by = provenance(command_line("bench.growth", sys.argv[1:]))
    runs: list[Growth] = []
    for network in models or MEASURED:
        for grow, most in ((grow_with_batch, largest), (grow_with_targets, targets)):
            click.echo(f"{network}: {grow.__name__}", err=True)
            try:
                runs.append(grow(network, most, repeats, made_by))
            except WrongResultError as error:
                raise click.ClickException(f"{network}: nothing was timed: {error}") from error
            if target is not None:
                write(_document([*measured_before, *runs]), target)
    if output is not None:
        write(_document(runs), output)
    click.echo(render_growth(runs))


def _document(runs: list[Growth]) -> GrowthFile:
    chosen = merged(runs, _place, lambda run: run.spread)
    return GrowthFile("growth", GrowthFile.CURRENT, chosen)


if __name__ == "__main__":
    main()
