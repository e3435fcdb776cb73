"""The metric tables on digits: `python -m bench.evaluate -o OUT`.

It trains the small VGG of `bench.digits` (a minute on two cores), and writes tables, each as text,
CSV and a figure: for digits placed anywhere, against their boxes and against their ink, for 2x2
grids of four digits, and for layers that are randomised one after another. The tables on photos are
made by `rapkernels evaluate`.
"""

from __future__ import annotations

from pathlib import Path

import click

from bench.digits import Digits, MaskKind, make_digits, make_grids, train
from bench.randomisation import randomisation_table
from rapkernels.cli.evaluate import write
from rapkernels.cli.failures import told_plainly
from rapkernels.cli.options import methods_option
from rapkernels.evaluation import COLUMNS, Settings, Table, choose_columns, choose_methods, evaluate

_DIGITS_SEED, _GRIDS_SEED = 2, 3
_RANDOMISED = 50
# What asks where the object is; the rest does not depend on the mask.
_OF_INK = [name for name, column in COLUMNS.items() if column.needs_masks]


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--count", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=450, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@methods_option("Methods to evaluate; the controls always follow.  [default: all]")
def main(output: Path, count: int, steps: int, seed: int, methods: tuple[str, ...]) -> None:
    """Evaluate methods on digits, placed anywhere and in 2x2 grids, and with randomised layers."""
    with told_plainly():
        chosen = choose_methods(methods or None, controls=True)
        output.mkdir(parents=True, exist_ok=True)
        trained = train(seed, steps=steps, tell=click.echo)
        click.echo(f"{trained.accuracy:.1%} of 1000 held-out pictures are read correctly\n")
        digits = make_digits(count, _DIGITS_SEED, held_out=True)
        kinds: dict[str, tuple[str, Digits, MaskKind, list[str] | None]] = {
            "digits": ("digits placed anywhere", digits, "boxes", None),
            "digit_ink": ("the ink of digits placed anywhere", digits, "ink", _OF_INK),
            "digit_grids": ("2x2 grids of digits", make_grids(count, _GRIDS_SEED), "cells", None),
        }
        for name, (title, pictures, masks, columns) in kinds.items():
            table = evaluate(
                trained.network,
                pictures.cases(masks),
                chosen,
                choose_columns(columns, masks=True),
                title=f"small VGG on {title}",
                settings=Settings(seed=seed),
                batch_size=50,
            )
            _tell(table, output / name)
        title = "small VGG with randomised layers"
        cases = digits.cases()[:_RANDOMISED]
        _tell(randomisation_table(trained.network, cases, chosen, title), output / "randomised")


def _tell(table: Table, stem: Path) -> None:
    click.echo(table.as_text())
    for path in write(table, stem):
        click.echo(f"written: {path}")


if __name__ == "__main__":
    main()
