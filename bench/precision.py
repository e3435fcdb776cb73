"""fp32, bf16 and fp16 against float64: what a user of `model.half()` or `precision="bf16"` sees.

    python -m bench.precision --photos FOLDER -o bench/results/precision/precision.csv

Each model is measured in a process of its own (`bench.precision_model`), and each row is written as
soon as it is there. `docs/precision.md` has the table.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import torch

from bench.machine import ROOT
from bench.precision_model import PrecisionRow

MODELS = ("efficientnet_lite0", "vgg16", "resnet50", "convnext_tiny", "vit_b_16")
FIELDS = [field.name for field in dataclasses.fields(PrecisionRow)]
Row = dict[str, object]


@click.command(help="Compare the maps of low precisions with those of float64.")
@click.option("--model", "models", multiple=True, help=f"Repeatable. Default: {', '.join(MODELS)}.")
@click.option("--samples", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--photos",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="A folder of JPEG photos. Default: normal noise.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=None)
def main(models: tuple[str, ...], samples: int, photos: Path | None, output: Path | None) -> None:
    """Measure; the text for users is the command's help."""
    rows: list[Row] = []
    failed: list[str] = []
    for name in models or MODELS:
        try:
            for row in measure_apart(name, samples, photos):
                rows.append(row)
                click.echo(", ".join(f"{key} {_short(value)}" for key, value in row.items()))
                if output is not None:
                    write(rows, output)
        except RuntimeError as error:
            failed.append(name)
            click.echo(f"{name}: {error}", err=True)
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def measure_apart(name: str, samples: int, photos: Path | None) -> Iterator[Row]:
    """The rows of a model as they come.

    Raises:
        RuntimeError: the process that measures failed; the message is the last that it printed.
    """
    arguments = [name, str(samples), str(torch.get_num_threads())]
    if photos is not None:
        arguments.append(str(photos.resolve()))
    command = [sys.executable, "-W", "ignore", "-m", "bench.precision_model", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        last = "no message"
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
            elif line.strip():
                last = line.strip()
    if process.returncode != 0:
        raise RuntimeError(last)


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
