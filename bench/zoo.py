"""All torchvision classifiers with random weights: do they run, and what does relevance do there?

    python -m bench.zoo -o bench/results/zoo.csv
    python -m bench.zoo --model vit_b_16 --model resnet152

Each model is measured in a process of its own (`bench.zoo_model`), and each row is written as soon
as it is there. `docs/models.md` has the table.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import click
import torch

from bench.machine import ROOT
from bench.zoo_model import METHODS, ZooRow

FIELDS = [field.name for field in dataclasses.fields(ZooRow)]
_TIMEOUT = 900


def classifiers() -> list[str]:
    """The names of torchvision's image classifiers."""
    from torchvision import models

    return list(models.list_models(module=models))


@click.command(help="Attribute torchvision's classifiers and tell what came of it.")
@click.option("--model", "models", multiple=True, help="Repeatable. Default: all classifiers.")
@click.option("--batch", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--method", type=click.Choice(list(METHODS)), default="rap", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=None)
def main(models: tuple[str, ...], batch: int, method: str, output: Path | None) -> None:
    """Measure; the text for users is the command's help."""
    rows: list[dict[str, object]] = []
    failed: list[str] = []
    for name in models or classifiers():
        row = measure_apart(name, batch, method)
        if isinstance(row, str):
            failed.append(name)
            click.echo(f"{name}: {row}", err=True)
            continue
        rows.append(row)
        click.echo(", ".join(f"{key} {_short(value)}" for key, value in row.items()))
        if output is not None:
            write(rows, output)
    click.echo(f"{len(rows)} of {len(rows) + len(failed)} models were explained")
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def measure_apart(name: str, batch: int, method: str) -> dict[str, object] | str:
    """The row of a model, or why there is none."""
    arguments = [name, str(batch), method, str(torch.get_num_threads())]
    command = [sys.executable, "-W", "ignore", "-m", "bench.zoo_model", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done within {_TIMEOUT} s"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def write(rows: list[dict[str, object]], path: Path) -> None:
    """Write the rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
