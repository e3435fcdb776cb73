"""The metrics that are evaluated, by name: a line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapkernels import metrics
from rapkernels.metrics.segmentation import Threshold

from .cases import EvaluationError
from .table import Heading

# 15 of 224 pixels, as in the pointing game's usual protocol.
TOLERANCE = 15 / 224
# RAP's protocol removes 100 of 224 x 224 pixels in each of 40 steps, which is 8 % of the image.
_REMOVED = 4000 / 224**2
_PERTURBATION_STEPS = 10
_CURVE_STEPS = 20


@dataclass(frozen=True)
class Scene:
    """What a metric may look at, beside the maps.

    Attributes:
        model: the network.
        x: (N, C, H, W), its input.
        targets: (N,), the explained classes.
        masks: (N, H, W) bool, where the objects are; None where that is not known.
        classes: (N, K), the classes that a case shows; None where it shows one, or is not known.
        others: (N, H, W), the maps of the same method for the most probable other class, among
            those that the case shows where it shows several; None where no column asks for them.
    """

    model: nn.Module
    x: Tensor
    targets: Tensor
    masks: Tensor | None
    classes: Tensor | None
    others: Tensor | None

    @property
    def tolerance(self) -> float:
        """Of the pointing game, in pixels: none where the objects of other classes are close."""
        return 0.0 if self.classes is not None else TOLERANCE * min(self.x.shape[-2:])

    @property
    def objects(self) -> Tensor:
        """The masks, which are known to be there."""
        assert self.masks is not None
        return self.masks

    @property
    def runner_up_maps(self) -> Tensor:
        """The other class's maps, which are known to be there."""
        assert self.others is not None
        return self.others


Measure = Callable[[Tensor, Scene], Tensor]


@dataclass(frozen=True)
class Column:
    """A metric.

    Attributes:
        heading: how the table names it.
        measure: from maps (N, H, W) and their scene to values (N,); NaN is not defined.
        needs_masks: whether it needs to know where objects are.
        needs_others: whether it needs the maps of another class.
    """

    heading: Heading
    measure: Measure
    needs_masks: bool = False
    needs_others: bool = False


SECONDS = Heading(
    "seconds", "s/image", "lower", "seconds per image, in batches, after one call that is not timed"
)


def _cut(metric: Callable[[Tensor, Tensor, Threshold], Tensor]) -> Measure:
    """The metric at the thresholds of the RAP paper: 0, or the mean without negative relevance."""

    def measure(maps: Tensor, scene: Scene) -> Tensor:
        signed = maps.amin(dim=(1, 2)) < 0
        at_zero, at_mean = (metric(maps, scene.objects, cut) for cut in ("zero", "mean"))
        return torch.where(signed, at_zero, at_mean)

    return measure


def _curve_share(order: metrics.curves.Order) -> Measure:
    def measure(maps: Tensor, scene: Scene) -> Tensor:
        area = maps.shape[-2] * maps.shape[-1]
        pixels = max(1, round(_REMOVED * area / _PERTURBATION_STEPS))
        steps = min(_PERTURBATION_STEPS, area // pixels)
        curves = metrics.perturbation(
            scene.model, scene.x, maps, order, pixels=pixels, steps=steps, target=scene.targets
        )
        return metrics.aopc(curves)

    return measure


def _insertion(maps: Tensor, scene: Scene) -> Tensor:
    steps = min(_CURVE_STEPS, maps.shape[-2] * maps.shape[-1])
    return metrics.auc(
        metrics.insertion(scene.model, scene.x, maps, steps=steps, target=scene.targets)
    )


def _deletion(maps: Tensor, scene: Scene) -> Tensor:
    steps = min(_CURVE_STEPS, maps.shape[-2] * maps.shape[-1])
    return metrics.auc(
        metrics.deletion(scene.model, scene.x, maps, steps=steps, target=scene.targets)
    )


COLUMNS: dict[str, Column] = {
    column.heading.name: column
    for column in (
        Column(
            Heading(
                "region_attribution",
                "inside",
                "higher",
                "share of the positive relevance that lies on the object",
            ),
            lambda maps, scene: metrics.region_attribution(maps, scene.objects),
            needs_masks=True,
        ),
        Column(
            Heading(
                "outside_inside",
                "out/in",
                "lower",
                "outside-inside relevance ratio, both signs",
            ),
            lambda maps, scene: metrics.outside_inside_ratio(maps, scene.objects, signs="both"),
            needs_masks=True,
        ),
        Column(
            Heading(
                "outside_inside_positive",
                "out/in +",
                "lower",
                "outside-inside ratio of the positive relevance",
            ),
            lambda maps, scene: metrics.outside_inside_ratio(maps, scene.objects, signs="positive"),
            needs_masks=True,
        ),
        Column(
            Heading(
                "pixel_accuracy",
                "pixel acc.",
                "higher",
                "share of pixels on the right side of 0 (maps never negative: of their mean)",
            ),
            _cut(metrics.pixel_accuracy),
            needs_masks=True,
        ),
        Column(
            Heading(
                "mean_iou",
                "mIoU",
                "higher",
                "intersection over union of the same pixels and the object, and of the rest",
            ),
            _cut(metrics.mean_iou),
            needs_masks=True,
        ),
        Column(
            Heading(
                "pointing_game",
                "pointing",
                "higher",
                "largest pixel on the object, or within 15/224 of the side (grids: on it)",
            ),
            lambda maps, scene: metrics.pointing_game(
                maps, scene.objects, tolerance=scene.tolerance
            ),
            needs_masks=True,
        ),
        Column(
            Heading(
                "morf",
                "MoRF",
                "higher",
                "fall of the probability, averaged, as 8 % of the pixels go, most relevant first",
            ),
            _curve_share("morf"),
        ),
        Column(
            Heading(
                "lerf",
                "LeRF",
                "lower",
                "the same, least relevant first",
            ),
            _curve_share("lerf"),
        ),
        Column(
            Heading(
                "insertion",
                "insertion",
                "higher",
                "area under the probability as pixels come, most relevant first",
            ),
            _insertion,
        ),
        Column(
            Heading(
                "deletion",
                "deletion",
                "lower",
                "area under the probability as pixels go, most relevant first",
            ),
            _deletion,
        ),
        Column(
            Heading("gini", "Gini", "", "sparseness: 0 all pixels alike, 1 a single one"),
            lambda maps, _: metrics.gini(maps),
        ),
        Column(
            Heading(
                "class_correlation",
                "other class",
                "",
                "correlation with the map of the most probable other class; 1: the same map",
            ),
            lambda maps, scene: metrics.map_correlation(maps, scene.runner_up_maps),
            needs_others=True,
        ),
    )
}


def choose_columns(names: Sequence[str] | None, masks: bool) -> list[Column]:
    """The columns of these names, in the order given; None for all that can be measured.

    Args:
        names: keys of ``COLUMNS``.
        masks: whether it is known where objects are.

    Raises:
        EvaluationError: an unknown name, or a metric that needs to know where objects are.
    """
    if names is None:
        return [column for column in COLUMNS.values() if masks or not column.needs_masks]
    for name in names:
        if name not in COLUMNS:
            raise EvaluationError(
                f"there is no metric '{name}'; the metrics are {', '.join(COLUMNS)}."
            )
        if COLUMNS[name].needs_masks and not masks:
            raise EvaluationError(f"the metric {name} needs boxes of the objects.")
    return [COLUMNS[name] for name in dict.fromkeys(names)]
