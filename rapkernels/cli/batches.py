"""From photo files to explanations, a batch at a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import NonPositiveTargetWarning
from ..evaluation.methods import Method, Settings
from ..images import ImageError, PreparedImage, Preprocessing, prepare_image, read_image
from ..methods import ClassDistribution
from ..methods.output import OutputExplainer
from ..models import Classifier, logits_of
from .classes import class_index, targets_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Explanation:
    """What is told about one photo.

    Attributes:
        place: position of the photo in the list that was given.
        view: the region of the photo that the network saw.
        relevance: (3, H, W), the relevance of the network's input; of Sharing Ratio (H, W).
        target: index of the explained class.
        class_name: its name, None when the network's classes have none.
        logit: the network's output for it; ``probability`` is its softmax.
        inverted: whether the sign of the logit turned the map around.
        seconds: time of the attribution of the whole batch.
        batch_size: photos in that batch.
    """

    place: int
    view: Image
    relevance: torch.Tensor
    target: int
    class_name: str | None
    logit: float
    probability: float
    inverted: bool
    seconds: float
    batch_size: int

    @property
    def label(self) -> str:
        """The class as it is written: name (index)."""
        return f"{self.class_name or 'class'} ({self.target})"

    @property
    def total(self) -> float:
        """The sum of all relevance."""
        return float(self.relevance.sum(dtype=torch.float64))


@dataclass(frozen=True)
class Unreadable:
    """A photo that could not be read, and why."""

    place: int
    reason: str


class Explainer:
    """A classifier, a method's explainer of it, and the class that was asked for.

    Attributes:
        tracing_seconds: time that was spent on the network's graph; None before the first batch.
    """

    def __init__(
        self,
        classifier: Classifier,
        preprocessing: Preprocessing,
        target: str | None,
        method: Method,
        settings: Settings,
    ) -> None:
        self._classifier = classifier
        self._preprocessing = preprocessing
        self._target = None if target is None else class_index(target, classifier.class_names)
        if method.make is None:
            raise ValueError(f"method must have an explainer, got {method.name}")
        self._explainer = method.make(classifier.module, settings)
        self.tracing_seconds: float | None = None

    def explain(
        self, photos: Sequence[Path], batch_size: int
    ) -> Iterator[Explanation | Unreadable]:
        """Explain all photos that can be read, in order, ``batch_size`` at a time."""
        for start in range(0, len(photos), batch_size):
            prepared: dict[int, PreparedImage] = {}
            results: dict[int, Explanation | Unreadable] = {}
            for place in range(start, min(start + batch_size, len(photos))):
                try:
                    photo = read_image(photos[place])
                    prepared[place] = prepare_image(photo, self._preprocessing)
                except ImageError as error:
                    results[place] = Unreadable(place, str(error))
            for explanation in self._batch(prepared):
                results[explanation.place] = explanation
            for place in sorted(results):
                yield results[place]

    def _batch(self, prepared: dict[int, PreparedImage]) -> Iterator[Explanation]:
        if not prepared:
            return
        batch = torch.stack([image.pixels for image in prepared.values()])
        logits = logits_of(self._classifier, batch)
        targets = targets_of(self._target, self._classifier, logits)
        if self.tracing_seconds is None:
            started = time.perf_counter()
            explainer = self._explainer
            if isinstance(explainer, ClassDistribution):
                explainer = explainer.base
            explainer.plan(batch)
            self.tracing_seconds = time.perf_counter() - started
        started = time.perf_counter()
        with warnings.catch_warnings():
            # The command says so itself, for each photo.
            warnings.simplefilter("ignore", NonPositiveTargetWarning)
            relevance = self._explainer.attribute(batch, target=targets)
        seconds = time.perf_counter() - started
        probabilities = logits.softmax(dim=1)
        names = self._classifier.class_names
        for row, (place, image) in enumerate(prepared.items()):
            target = targets[row]
            logit = float(logits[row, target])
            yield Explanation(
                place=place,
                view=image.view,
                relevance=relevance[row],
                target=target,
                class_name=None if names is None else names[target],
                logit=logit,
                probability=float(probabilities[row, target]),
                inverted=logit <= 0 and isinstance(self._explainer, OutputExplainer),
                seconds=seconds,
                batch_size=len(prepared),
            )
