"""Which class a command explains, and how it is written."""

from __future__ import annotations

import torch

from ..labels import ClassNameError, ClassNames
from ..models import Classifier


def class_index(target: str, names: ClassNames | None) -> int:
    """The index that a user means by an index or a name.

    Raises:
        ClassNameError: an unknown name, or names where the classes have none.
    """
    try:
        return int(target)
    except ValueError:
        if names is None:
            raise ClassNameError(
                f"--target {target}: the classes of this network have no names; give an index."
            ) from None
        return names.find(target)


def class_label(index: int, names: ClassNames | None) -> str:
    """The class as it is written: name (index)."""
    return f"{'class' if names is None else names[index]} ({index})"


def targets_of(index: int | None, classifier: Classifier, logits: torch.Tensor) -> list[int]:
    """The class to explain for each row of logits (N, classes); None is the predicted one.

    Raises:
        ClassNameError: the network has no class of this index.
    """
    count, classes = logits.shape
    if index is None:
        return [int(predicted) for predicted in logits.argmax(dim=1)]
    if not 0 <= index < classes:
        raise ClassNameError(
            f"--target must be between 0 and {classes - 1} for {classifier.name}, got {index}."
        )
    return [index] * count


def choose_target(target: str | None, classifier: Classifier, logits: torch.Tensor) -> list[int]:
    """:func:`targets_of` what a user typed, an index or a name; None is the predicted class."""
    index = None if target is None else class_index(target, classifier.class_names)
    return targets_of(index, classifier, logits)
