"""Result files to the tables in README and docs, which are never typed by hand.

python -m bench.report            # from the files in bench/results
python -m bench.report --check
python -m bench.report --print bench/results/models.json

README has the networks at batch 4; docs/speed.md has them at every batch, the ops, and how the cost
grows, with docs/growth.svg. A file that is not there leaves its part of that page as it is. The
GPU's table is made from bench/results/gpu.json; where there is none, README says so. The tables of
another page PAGE of docs are made from bench/results/PAGE/NAME.csv, each between markers of its
NAME.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from bench.evaluation_tables import render_evaluation
from bench.gpu.results import read as read_gpu
from bench.gpu.table import NOT_MEASURED, render_gpu
from bench.growth_table import digest, draw_growth, render_growth
from bench.machine import ROOT
from bench.methods import WHOLE_BATCH
from bench.precision_table import render_precision
from bench.render import render_models, render_ops
from bench.schema import GrowthFile, ModelsFile, ResultsFile, SchemaError, read
from bench.zoo_tables import render_zoo

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
GPU_BEGIN = "<!-- bench-gpu:begin -->"
GPU_END = "<!-- bench-gpu:end -->"
RESULTS = ROOT / "bench" / "results"
FILES = tuple(RESULTS / f"{kind}.json" for kind in ("models", "ops", "growth"))
SPEED = "speed.md"
PICTURE = "growth.svg"
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


def readme_table(document: ModelsFile) -> str:
    """The networks at the batch at which all is measured."""
    runs = [run for run in document.runs if run.input_shape[0] == WHOLE_BATCH]
    return (
        f"{render_models(runs)}\n\nOther batches, single ops, growth: [docs/{SPEED}](docs/{SPEED})."
    )


def speed_table(document: ResultsFile) -> str:
    """What docs/speed.md has of a result file."""
    if isinstance(document, GrowthFile):
        return f"![Cost over batch and targets]({PICTURE})\n\n{render_growth(document.runs)}"
    if not isinstance(document, ModelsFile):
        return render_ops(document)
    batches = sorted({run.input_shape[0] for run in document.runs})
    parts = []
    for batch in batches:
        runs = [run for run in document.runs if run.input_shape[0] == batch]
        parts.append(f"### Batch {batch}\n\n{render_models(runs)}")
    return "\n\n".join(parts)


def with_speed_tables(text: str, documents: Sequence[ResultsFile]) -> str:
    """The text of docs/speed.md with what these files hold between the markers of their kinds."""
    for document in documents:
        begin, end = (f"<!-- {document.kind}:{word} -->" for word in ("begin", "end"))
        text = insert(text, speed_table(document), begin, end)
    return text


@click.command(help="Write the tables of the result FILES into README and docs.")
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
        documents = {path: read(path) for path in files or FILES if files or path.exists()}
        if only_print:
            click.echo("\n\n".join([*map(speed_table, documents.values()), gpu_table(gpu)]))
            return
        text = readme.read_text(encoding="utf-8")
        for document in documents.values():
            if isinstance(document, ModelsFile):
                text = insert(text, readme_table(document))
        if GPU_BEGIN in text or GPU_END in text:
            text = insert(text, gpu_table(gpu), GPU_BEGIN, GPU_END)
        speed = docs / SPEED
        new = {
            readme: text,
            speed: with_speed_tables(speed.read_text(encoding="utf-8"), list(documents.values())),
        }
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
    for path, document in documents.items():
        if isinstance(document, GrowthFile):
            _picture(docs / PICTURE, path, document, check)


def _picture(picture: Path, source: Path, document: GrowthFile, check: bool) -> None:
    """Draw it, or look whether it was drawn from this file: bytes are those of a matplotlib."""
    if not check:
        draw_growth(document.runs, digest(source), picture)
    elif not picture.exists() or digest(source) not in picture.read_text(encoding="utf-8"):
        raise click.ClickException(
            f"{picture.name} is not drawn from {source.name}; run python -m bench.report"
        )


if __name__ == "__main__":
    main()
