"""Runs of several commands in one file, so that a long table is measured in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from bench.limits import STEADY
from bench.schema import GrowthFile, ModelsFile, SchemaError, read

Run = TypeVar("Run")


def merge_option(place: str) -> Callable[[Any], Any]:
    """The option `--merge`, which a command gets as `target`."""
    return click.option(
        "--merge",
        "target",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="A result file to put each run into as soon as it is measured, in place of that of "
        f"the same {place}; but none that is not usable in place of one that is. Made where it is "
        "not there.",
    )


def merged(
    runs: Iterable[Run], place: Callable[[Run], Any], spread: Callable[[Run], float]
) -> list[Run]:
    """One run for each `place`: the last, but none that varied where another did not."""
    chosen: dict[Any, Run] = {}
    for run in runs:
        known = chosen.get(place(run))
        if known is None or spread(run) <= STEADY or spread(known) > STEADY:
            chosen[place(run)] = run
    return [chosen[key] for key in sorted(chosen)]


def runs_of(path: Path, kind: type[ModelsFile] | type[GrowthFile]) -> list[Any]:
    """The runs of the file to merge into; none where it is not there yet.

    Raises click.ClickException for a file of another shape.
    """
    if not path.exists():
        return []
    try:
        found = read(path)
    except SchemaError as error:
        raise click.ClickException(f"--merge: {error}") from error
    if not isinstance(found, kind):
        raise click.ClickException(f"--merge: {path.name} holds runs of bench.{found.kind}")
    return list(found.runs)
