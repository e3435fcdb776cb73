"""Result files to the table in README, which is never typed by hand.

python -m bench.report bench/results/models.json bench/results/ops.json
python -m bench.report --check bench/results/models.json bench/results/ops.json
"""

from __future__ import annotations

from pathlib import Path

import click

from bench.machine import ROOT
from bench.render import render
from bench.schema import SchemaError, read

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"


def insert(text: str, table: str) -> str:
    """Put `table` between the two markers of `text`; raises ValueError unless each occurs once."""
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            raise ValueError(f"the text must hold {marker} exactly once, got {text.count(marker)}")
    head, rest = text.split(BEGIN)
    if END not in rest:
        raise ValueError(f"{BEGIN} must come before {END}")
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


@click.command(help="Write the tables of the result FILES between README's bench markers.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--readme", type=click.Path(path_type=Path), default=ROOT / "README.md")
@click.option("--check", is_flag=True, help="Write nothing; fail where the table is not current.")
@click.option("--print", "only_print", is_flag=True, help="Print the tables, write nothing.")
def main(files: tuple[Path, ...], readme: Path, check: bool, only_print: bool) -> None:
    """Write, check or print the tables; the text for users is the command's help."""
    try:
        table = render([read(path) for path in files])
        if only_print:
            click.echo(table)
            return
        old = readme.read_text(encoding="utf-8")
        new = insert(old, table)
    except (OSError, SchemaError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if not check:
        readme.write_text(new, encoding="utf-8")
    elif new != old:
        raise click.ClickException(
            f"the table in {readme.name} is not made from these files; run python -m bench.report"
        )


if __name__ == "__main__":
    main()
