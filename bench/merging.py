"""Runs of several commands in one file, so that a long table is measured in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from bench.schema import GrowthFile, ModelsFile, SchemaError, read

Run = TypeVar("Run")


def merged(old: Iterable[Run], new: Iterable[Run], place: Callable[[Run], Any]) -> list[Run]:
    """Old and new runs by `place`; a new one takes the place of an old one."""
    runs = {place(run): run for run in (*old, *new)}
    return [runs[key] for key in sorted(runs)]


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
