"""The metric tables on digits: `python -m bench.evaluate -o OUT`.

It trains the small VGG of `bench.digits` (a minute on two cores), and writes a table for digits
placed anywhere and one for 2x2 grids of four digits, as text, CSV and a figure. The tables on
photos are made by `rapkernels evaluate`.
"""

from __future__ import annotations

from pathlib import Path

import click

from bench.digits import make_digits, make_grids, train
from rapkernels.cli.evaluate import write
from rapkernels.cli.failures import told_plainly
from rapkernels.cli.options import methods_option
from rapkernels.evaluation import Settings, choose_columns, choose_methods, evaluate

_DIGITS_SEED, _GRIDS_SEED = 2, 3


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--count", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=450, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@methods_option("Methods to evaluate; the controls always follow.  [default: all]")
def main(output: Path, count: int, steps: int, seed: int, methods: tuple[str, ...]) -> None:
    """Evaluate methods on digits, placed anywhere and in 2x2 grids."""
    with told_plainly():
        chosen = choose_methods(methods or None, controls=True)
        output.mkdir(parents=True, exist_ok=True)
        trained = train(seed, steps=steps, tell=click.echo)
        click.echo(f"{trained.accuracy:.1%} of 1000 held-out pictures are read correctly\n")
        kinds = {
            "digits": ("digits placed anywhere", make_digits(count, _DIGITS_SEED, held_out=True)),
            "digit_grids": ("2x2 grids of digits", make_grids(count, _GRIDS_SEED)),
        }
        for name, (title, pictures) in kinds.items():
            table = evaluate(
                trained.network,
                pictures.cases("cells" if name == "digit_grids" else "boxes"),
                chosen,
                choose_columns(None, masks=True),
                title=f"small VGG on {title}",
                settings=Settings(seed=seed),
                batch_size=50,
            )
            click.echo(table.as_text())
            for path in write(table, output / name):
                click.echo(f"written: {path}")


if __name__ == "__main__":
    main()
