"""Classifiers with random weights: do they run, and what does relevance do there?

    python -m bench.zoo                                    # all three libraries
    python -m bench.zoo --library torchvision --model vit_b_16 --model resnet152 --print

Each model is measured in a process of its own (`bench.zoo_model`), and each row is written as soon
as it is there, to bench/results/models/LIBRARY.csv. `python -m bench.report` makes the tables of
docs/models.md of them. It fails where a model does not run, is not finite, or has a node that does
not conserve.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch

from bench.machine import ROOT
from bench.zoo_model import METHODS, ZooRow
from bench.zoo_models import LIBRARIES, names_of

FIELDS = [field.name for field in dataclasses.fields(ZooRow)]
RESULTS = ROOT / "bench" / "results" / "models"
_TIMEOUT = 900


@click.command(help="Attribute classifiers with random weights and tell what came of it.")
@click.option("--library", "libraries", multiple=True, type=click.Choice(list(LIBRARIES)))
@click.option("--model", "models", multiple=True, help="Repeatable. Default: all of the library.")
@click.option("--batch", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--method", type=click.Choice(list(METHODS)), default="rap", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    show_default=True,
    help="Folder for one CSV file per library.",
)
@click.option("--print", "only_print", is_flag=True, help="Write no files.")
def main(
    libraries: tuple[str, ...],
    models: tuple[str, ...],
    batch: int,
    method: str,
    output: Path,
    only_print: bool,
) -> None:
    """Measure; the text for users is the command's help."""
    failed: list[str] = []
    done = 0
    for library in libraries or LIBRARIES:
        rows: list[ZooRow] = []
        for name in models or names_of(library):
            row = measure_apart(library, name, batch, method)
            if isinstance(row, str):
                failed.append(name)
                click.echo(f"{name}: {row}", err=True)
                continue
            rows.append(row)
            if not row.passes:
                failed.append(name)
            values = dataclasses.asdict(row).items()
            click.echo(", ".join(f"{key} {_short(value)}" for key, value in values))
            if not only_print:
                write(rows, output / f"{library}.csv")
        done += len(rows)
    click.echo(f"{done} models were explained")
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def measure_apart(library: str, name: str, batch: int, method: str) -> ZooRow | str:
    """The row of a model, or why there is none."""
    arguments = [library, name, str(batch), method, str(torch.get_num_threads())]
    command = [sys.executable, "-W", "ignore", "-m", "bench.zoo_model", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done within {_TIMEOUT} s"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return ZooRow(**json.loads(done.stdout.strip().splitlines()[-1]))


def write(rows: list[ZooRow], path: Path) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
