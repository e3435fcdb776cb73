"""``rapkernels compare``: one photo, every method."""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch

from ..backends import Backend
from ..comparison import Panel, draw_comparison
from ..evaluation.methods import Method, Settings, choose_methods, maps_of_targets
from ..figures import save_figure
from ..heatmap import colour_limit
from ..images import prepare_image, read_image
from ..methods.rap import VariantName
from ..metrics import map_correlation
from ..models import Classifier, load_classifier, logits_of
from . import options
from .classes import choose_target, class_label
from .explain import FIGURE_FORMATS
from .failures import told_plainly
from .outputs import plan_outputs


@click.command()
@click.argument("image", metavar="IMAGE", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="File or folder for the figure; a file's suffix chooses the format.  "
    "[default: NAME_compare.png in the current folder]",
)
@options.methods_option("Methods to show, in this order.  [default: all but the controls]")
@options.network_options
@options.target_option
@options.method_options
def compare(
    image: Path,
    output: str | None,
    methods: tuple[str, ...],
    model: str,
    weights: Path | None,
    resize: str,
    target: str | None,
    variant: VariantName,
    backend: Backend,
) -> None:
    """Compare what methods see in a photo: their heat maps side by side, in one figure.

    Red pixels speak for the class, blue pixels against it, white ones do not matter. Methods have
    units of their own, so each map has its own scale, symmetric about zero. The time is that of one
    photo, after one call that is not timed. Under it is the correlation with the same method's map
    for the runner-up class: near 1, the map hardly depends on the class.
    """
    with told_plainly():
        chosen = choose_methods(methods or None, controls=False)
        (path,) = plan_outputs([image], output, "_compare.png", "--output", FIGURE_FORMATS)
        classifier = load_classifier(model, weights)
        wanted = classifier.preprocessing
        preprocessing = wanted.stretched() if resize == "stretch" else wanted
        prepared = prepare_image(read_image(image), preprocessing)
        x = prepared.pixels[None]
        logits = logits_of(classifier, x)
        (explained,) = choose_target(target, classifier, logits)
        rivals = logits[0].clone()
        rivals[explained] = -torch.inf
        runner_up = int(rivals.argmax())
        label = class_label(explained, classifier.class_names)
        probability = float(logits.softmax(dim=1)[0, explained])
        score = f"logit {float(logits[0, explained]):.4g}, probability {probability:.2g}"
        click.echo(f"{image}\n  {'class':<22} {label}\n  {'score':<22} {score}")
        panels = []
        for method in chosen:
            classes = torch.tensor([[explained, runner_up]])
            panel = _panel(method, classifier, x, classes, Settings(variant, backend))
            click.echo(f"  {method.label:<22} {panel.detail.splitlines()[0]}")
            panels.append(panel)
        heading = f"{image.name}: {label}"
        save_figure(draw_comparison(prepared.view, heading, f"{model}\n{score}", panels), path)
        click.echo(f"  {'written':<22} {path}")


def _panel(
    method: Method,
    classifier: Classifier,
    x: torch.Tensor,
    classes: torch.Tensor,
    settings: Settings,
) -> Panel:
    """The map of the first of classes (1, 2), compared with that of the second."""
    explain = method.build(classifier.module, settings)
    first, second = maps_of_targets(explain, x, classes)
    started = time.perf_counter()
    maps = explain(x, classes[:, 0])
    seconds = time.perf_counter() - started
    heat = maps[0].to("cpu", torch.float64).numpy()
    correlation = float(map_correlation(first, second))
    detail = (
        f"{seconds:.3f} s, runner-up {correlation:.2f}\n"
        f"largest {colour_limit(heat):.3g}, total {heat.sum():.4g}"
    )
    return Panel(method.label, detail, heat)
