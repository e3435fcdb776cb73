"""Result files to the tables in README and docs, which are never typed by hand.

python -m bench.report            # from the files in bench/results
python -m bench.report --check
python -m bench.report --print bench/results/models.json

The GPU's table is made from bench/results/gpu.json; where there is none, README says so. The tables
of a page PAGE of docs are made from bench/results/PAGE/NAME.csv, each between markers of its NAME.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from bench.evaluation_tables import render_evaluation
from bench.gpu.results import read as read_gpu
from bench.gpu.table import NOT_MEASURED, render_gpu
from bench.machine import ROOT
from bench.precision_table import render_precision
from bench.render import render
from bench.schema import SchemaError, read
from bench.zoo_tables import render_zoo

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
GPU_BEGIN = "<!-- bench-gpu:begin -->"
GPU_END = "<!-- bench-gpu:end -->"
RESULTS = ROOT / "bench" / "results"
FILES = (RESULTS / "models.json", RESULTS / "ops.json")
# Page of docs, and folder of results -> how its files become tables.
PAGES: dict[str, Callable[[Path], str]] = {
    "evaluation": render_evaluation,
    "models": render_zoo,
    "precision": render_precision,
}


def insert(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """Put `table` between the two markers of `text`; raises ValueError unless each occurs once."""
    for marker in (begin, end):
        if text.count(marker) != 1:
            raise ValueError(f"the text must hold {marker} exactly once, got {text.count(marker)}")
    head, rest = text.split(begin)
    if end not in rest:
        raise ValueError(f"{begin} must come before {end}")
    tail = rest.split(end)[1]
    return f"{head}{begin}\n{table}\n{end}{tail}"


def gpu_table(path: Path) -> str:
    """The table of a GPU run, or the words that stand in for it.

    Raises SchemaError, or ValueError for a run that only tried the script on a CPU.
    """
    if not path.exists():
        return NOT_MEASURED
    document = read_gpu(path)
    if document.dry:
        raise ValueError(f"{path.name} is of a trial on the CPU; it does not belong in README")
    return render_gpu(document)


def with_tables(text: str, folder: Path, render_file: Callable[[Path], str]) -> str:
    """The text of a page with the table of each CSV file of a folder between its markers."""
    for path in sorted(folder.glob("*.csv")):
        begin, end = (f"<!-- {path.stem}:{word} -->" for word in ("begin", "end"))
        text = insert(text, render_file(path), begin, end)
    return text


@click.command(help="Write the tables of the result FILES between README's bench markers.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--gpu", type=click.Path(path_type=Path), default=RESULTS / "gpu.json")
@click.option("--readme", type=click.Path(path_type=Path), default=ROOT / "README.md")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=RESULTS,
    help="Has a folder of CSV files for each page of --docs.",
)
@click.option("--docs", type=click.Path(path_type=Path), default=ROOT / "docs")
@click.option("--check", is_flag=True, help="Write nothing; fail where the tables are not current.")
@click.option("--print", "only_print", is_flag=True, help="Print the tables, write nothing.")
def main(
    files: tuple[Path, ...],
    gpu: Path,
    readme: Path,
    results: Path,
    docs: Path,
    check: bool,
    only_print: bool,
) -> None:
    """Write, check or print the tables; the text for users is the command's help."""
    try:
        table = render([read(path) for path in files or FILES])
        if only_print:
            click.echo(f"{table}\n\n{gpu_table(gpu)}")
            return
        text = insert(readme.read_text(encoding="utf-8"), table)
        if GPU_BEGIN in text or GPU_END in text:
            text = insert(text, gpu_table(gpu), GPU_BEGIN, GPU_END)
        new = {readme: text}
        for page, render_file in PAGES.items():
            if any((results / page).glob("*.csv")):
                doc = docs / f"{page}.md"
                new[doc] = with_tables(doc.read_text(encoding="utf-8"), results / page, render_file)
    except (OSError, SchemaError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for path, text in new.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif text != path.read_text(encoding="utf-8"):
            raise click.ClickException(
                f"a table in {path.name} is not made from these files; run python -m bench.report"
            )


if __name__ == "__main__":
    main()
