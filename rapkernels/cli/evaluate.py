"""``rapkernels evaluate``: metric tables over methods, with controls."""

from __future__ import annotations

from pathlib import Path

import click

from ..backends import Backend
from ..evaluation import (
    COLUMNS,
    Cases,
    EvaluationError,
    GridCases,
    PhotoCases,
    Settings,
    SmallObjectCases,
    Table,
    choose_columns,
    choose_methods,
    draw_table,
    evaluate,
    read_boxes,
    with_targets,
)
from ..figures import save_figure
from ..images import Preprocessing
from ..methods.rap import VariantName
from ..models import Classifier, load_classifier
from . import options
from .failures import told_plainly

KINDS = ("photos", "grids", "small")
_DRAWS = 100


@click.command(name="evaluate")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Folder for the tables: KIND.txt, KIND.csv and KIND.png for each kind of images.",
)
@click.option(
    "--boxes",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON with a box and a class for each photo (see above). Without it: only metrics that "
    "need no boxes, for the predicted class.",
)
@options.methods_option("Methods to evaluate; the controls always follow.  [default: all]")
@click.option(
    "--metrics",
    metavar="NAME,...",
    callback=options.names,
    help=f"Metrics, of {', '.join(COLUMNS)}.  [default: all that can be measured]",
)
@click.option(
    "--images",
    "kinds",
    metavar="KIND,...",
    default="photos",
    show_default=True,
    callback=options.names,
    help="photos: as they are. grids: 2x2 grids of photos of four classes, of which one is asked "
    "for. small: the object of each photo, small and off the centre, the rest blurred.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=_DRAWS,
    show_default=True,
    help="How many grids; how many small objects, at least.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@options.network_options
@options.method_options
@options.batch_size_option
def evaluate_command(
    folder: Path,
    output: Path,
    boxes: Path | None,
    methods: tuple[str, ...],
    metrics: tuple[str, ...],
    kinds: tuple[str, ...],
    count: int,
    seed: int,
    model: str,
    weights: Path | None,
    resize: str,
    variant: VariantName,
    backend: Backend,
    batch_size: int,
) -> None:
    """Measure methods on a folder of photos: a table of metrics, with controls that see nothing.

    \b
    FILE of --boxes is JSON; boxes are [x0, y0, x1, y1] in pixels of the photo:
      {"size": [224, 224],
       "boxes": {"photo_1": {"box": [76, 40, 206, 224], "imagenet": 159}, ...}}

    Boxes go through the network's resize and crop like the photos.
    """  # noqa: D301
    with told_plainly():
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise click.UsageError(f"--images must be of {', '.join(KINDS)}, got {unknown[0]}.")
        chosen = choose_methods(methods or None, controls=True)
        choose_columns(metrics or None, masks=True)
        _make_folder(output)
        classifier = load_classifier(model, weights)
        wanted = classifier.preprocessing
        preprocessing = wanted.stretched() if resize == "stretch" else wanted
        photos = _photos(folder, preprocessing, boxes)
        for kind in kinds:
            cases = _cases(kind, photos, classifier, count, seed, batch_size)
            masks = boxes is not None or kind != "photos"
            columns = choose_columns(metrics or None, masks)
            title = f"{model} on {_TITLES[kind]} of {folder.name or folder}"
            with click.progressbar(
                length=len(cases) * len(chosen), label=f"{kind} x methods", show_pos=True
            ) as bar:
                table = evaluate(
                    classifier.module,
                    cases,
                    chosen,
                    columns,
                    title=title,
                    settings=Settings(variant, backend, seed),
                    batch_size=batch_size,
                    progress=bar.update,
                )
            click.echo(table.as_text())
            for path in write(table, output / kind):
                click.echo(f"written: {path}")


_TITLES = {"photos": "the photos", "grids": "2x2 grids", "small": "small objects"}


def write(table: Table, stem: Path) -> list[Path]:
    """Write a table as STEM.txt, STEM.csv and STEM.png.

    Raises:
        EvaluationError, FigureError: a file cannot be written.
    """
    text, numbers, figure = (stem.with_name(stem.name + end) for end in (".txt", ".csv", ".png"))
    table.write_text(text)
    table.write_csv(numbers)
    save_figure(draw_table(table), figure)
    return [text, numbers, figure]


def _photos(folder: Path, preprocessing: Preprocessing, boxes: Path | None) -> PhotoCases:
    photos = PhotoCases(folder, preprocessing, None if boxes is None else read_boxes(boxes))
    if photos.left_out:
        click.echo(
            f"Warning: {len(photos.left_out)} of {len(photos) + len(photos.left_out)} photos have "
            f"no box and are left out: {', '.join(photos.left_out[:3])}"
            + (", ..." if len(photos.left_out) > 3 else ""),
            err=True,
        )
    return photos


def _cases(
    kind: str, photos: PhotoCases, classifier: Classifier, count: int, seed: int, batch_size: int
) -> Cases:
    if kind == "photos":
        return photos
    labelled = with_targets(classifier.module, photos, batch_size)
    if kind == "grids":
        return GridCases(labelled, count, seed)
    return SmallObjectCases(labelled, -(-count // len(labelled)), seed)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"{folder}: cannot be made ({error.strerror}).") from None
