"""``rapkernels explain``: heat maps of photos."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from ..backends import Backend
from ..evaluation.methods import METHODS, Settings
from ..figures import save_figure
from ..heatmap import Caption, draw
from ..methods.rap import VariantName
from ..models import load_classifier
from . import options
from .batches import Explainer, Explanation, Unreadable
from .failures import told_plainly
from .outputs import plan_outputs

FIGURE_FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tiff")
# The methods that --variant has a say in.
OF_RAP = ("rap", "class_distribution")
NOT_POSITIVE = (
    "The logit is not positive: this map is the inverse of a positive class's, "
    "so read red as blue and blue as red."
)


@click.command()
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="File (one image) or folder for the figures; a file's suffix chooses the format.  "
    "[default: NAME_METHOD.png in the current folder]",
)
@click.option(
    "--raw",
    metavar="OUT",
    help="File (one image) or folder for the relevance itself, as .npy of shape (3, H, W); of "
    "sharing_ratio (H, W).",
)
@options.network_options
@options.target_option
@options.method_option
@options.method_options
@options.batch_size_option
def explain(
    images: tuple[Path, ...],
    output: str | None,
    raw: str | None,
    model: str,
    weights: Path | None,
    resize: str,
    target: str | None,
    method: str,
    variant: VariantName,
    backend: Backend,
    batch_size: int,
) -> None:
    """Explain what a network sees in photos: a heat map for each, beside the photo.

    Red pixels speak for the class, blue pixels against it, white ones do not matter.
    """
    with told_plainly():
        if variant != "default" and method not in OF_RAP:
            raise click.UsageError(
                f"--variant {variant} is a choice of RAP's rules; leave it out with --method "
                f"{method}, or take --method {' or '.join(OF_RAP)}."
            )
        figures = plan_outputs(images, output, f"_{method}.png", "--output", FIGURE_FORMATS)
        arrays = (
            None if raw is None else plan_outputs(images, raw, f"_{method}.npy", "--raw", [".npy"])
        )
        classifier = load_classifier(model, weights)
        wanted = classifier.preprocessing
        preprocessing = wanted.stretched() if resize == "stretch" else wanted
        chosen = METHODS[method]
        settings = Settings(variant, backend)
        explainer = Explainer(classifier, preprocessing, target, chosen, settings)
        failures = 0
        for result in explainer.explain(images, batch_size):
            photo = images[result.place]
            if isinstance(result, Unreadable):
                click.echo(f"Error: {result.reason}", err=True)
                failures += 1
                continue
            written = [figures[result.place]]
            caption = _caption(photo, result, model, chosen.label, variant)
            save_figure(draw(result.view, result.relevance, caption), written[0])
            if arrays is not None:
                written.append(arrays[result.place])
                _save_array(written[-1], result)
            _tell(photo, result, explainer.tracing_seconds, written)
    if failures:
        raise click.exceptions.Exit(1)


def _caption(photo: Path, result: Explanation, model: str, method: str, variant: str) -> Caption:
    height, width = result.relevance.shape[-2:]
    return Caption(
        photo=photo.name,
        photo_detail=f"seen by {model} at {width} x {height}",
        map=f"{method}: {result.label}",
        map_detail=f"logit {result.logit:.4g}, probability {result.probability:.2g}, "
        f"relevance {result.total:.4g}" + ("" if variant == "default" else f", variant {variant}"),
        note=NOT_POSITIVE if result.inverted else "",
    )


def _save_array(path: Path, result: Explanation) -> None:
    try:
        np.save(path, result.relevance.numpy())
    except OSError as error:
        raise click.ClickException(f"{path}: cannot be written ({error.strerror}).") from None


def _tell(
    photo: Path, result: Explanation, tracing_seconds: float | None, written: list[Path]
) -> None:
    share = result.seconds / result.batch_size
    batch = "" if result.batch_size == 1 else f" (a batch of {result.batch_size} in "
    batch += "" if result.batch_size == 1 else f"{result.seconds:.2f} s)"
    lines = {
        "class": result.label,
        "logit": f"{result.logit:.5g} (probability {result.probability:.3g})",
        "relevance": f"{result.total:.5g} in total",
        "time": f"{share:.3f} s attribution{batch}, {tracing_seconds or 0.0:.2f} s network graph "
        "(once)",
        "written": ", ".join(str(path) for path in written),
    }
    if result.inverted:
        lines["note"] = NOT_POSITIVE
    click.echo(str(photo))
    for name, text in lines.items():
        click.echo(f"  {name:<10} {text}")
