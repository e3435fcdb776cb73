"""Attributions of any origin behind one interface: maps of several classes, and the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.explainer import Explainer

Model = Callable[[Tensor], Tensor]


class AttributionBase:
    """What attributes one class, made to attribute several.

    Args:
        base: an object with ``attribute_targets(x, targets, layers=None)``, as the explainers of
            this package; or one with captum's ``attribute(x, target=...)``; or a function
            ``f(x, target=...)``. The first that it has is used.
        model: what it explains; None for its ``model`` or ``forward_func``, where it has one.

    Raises:
        ArgumentTypeError: ``base`` is none of these, or ``model`` cannot be called.
    """

    def __init__(self, base: Any, model: Model | None = None) -> None:
        wanted = (
            "base must be an explainer, an object with attribute(x, target=...) or a function "
            "f(x, target=...)"
        )
        if isinstance(base, type):
            raise ArgumentTypeError(f"{wanted}, got the class {base.__name__} itself")
        self._base = base
        self.name = str(getattr(base, "__name__", type(base).__name__))
        self.is_explainer = self._has("attribute_targets")
        # A module can be called, but not with a target.
        is_function = callable(base) and not isinstance(base, nn.Module)
        if not (self.is_explainer or self._has("attribute") or is_function):
            raise ArgumentTypeError(f"{wanted}, got {self.name}")
        if model is not None and not callable(model):
            raise ArgumentTypeError(
                f"model must be a function from x to logits (N, C), got {type(model).__name__}"
            )
        self.model: Model | None = model
        for name in ("model", "forward_func"):
            if self.model is None and self._has(name):
                self.model = getattr(base, name)

    def maps(
        self, x: Tensor, classes: Tensor, layers: Sequence[str] | None = None, first: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Attribute several classes of each sample.

        Args:
            x: ``(N, ...)``.
            classes: ``(N, K)`` int64 on the device of ``x``.
            layers: paths of modules whose maps are wanted too; only where ``is_explainer``.
            first: the number of the first sample, for messages.

        Returns:
            ``(K, N, ...)``, detached, and a dict from path to the same at that layer.

        Raises:
            ArgumentError: the base returns something else.
        """
        samples, count = classes.shape
        if layers is not None:
            maps, inside = self._several(x, classes, layers, first)
            shape = (count, samples)
            checked = {path: _checked(value, shape) for path, value in inside.items()}
            return _checked(maps, shape), checked
        if self.is_explainer:
            return _checked(self._several(x, classes, None, first), (count, samples)), {}
        call = self._base.attribute if self._has("attribute") else self._base
        several = [_checked(call(x, target=one), (samples,)) for one in classes.unbind(1)]
        shapes = sorted({tuple(one.shape) for one in several})
        if len(shapes) > 1:
            raise ArgumentError(
                "base must return maps of one shape for all classes, got shapes "
                f"{list(shapes[0])} and {list(shapes[-1])}"
            )
        return torch.stack(several), {}

    def samples_at_once(
        self, x: Tensor, classes: int, layers: Sequence[str] | None, copies: int
    ) -> int:
        """How many samples fit the base's ``max_memory``; all of them where it has none.

        Args:
            x: ``(N, ...)``.
            classes: how many classes are attributed.
            layers: as for :meth:`maps`.
            copies: how many maps are held besides for each sample and class.
        """
        if not isinstance(self._base, Explainer):
            return x.shape[0]
        return self._base._samples_at_once(x, classes, layers, copies)

    def _several(self, x: Tensor, classes: Tensor, layers: Sequence[str] | None, first: int) -> Any:
        if isinstance(self._base, Explainer):
            return self._base._attribute(x, classes, layers, many=True, first=first)
        if layers is None:
            return self._base.attribute_targets(x, classes)
        return self._base.attribute_targets(x, classes, layers=layers)

    def _has(self, name: str) -> bool:
        return callable(getattr(self._base, name, None))


def _checked(maps: Any, begin: tuple[int, ...]) -> Tensor:
    """What a base returned, if it is maps of the samples and classes asked for."""
    wanted = "base must return one floating-point tensor of maps"
    if not isinstance(maps, Tensor):
        raise ArgumentError(f"{wanted}, got {type(maps).__name__}")
    if not maps.dtype.is_floating_point:
        raise ArgumentError(f"{wanted}, got dtype {str(maps.dtype).removeprefix('torch.')}")
    if maps.shape[: len(begin)] != begin:
        raise ArgumentError(
            f"{wanted} whose shape begins with {list(begin)}, got shape {list(maps.shape)}"
        )
    return maps.detach()
