"""What becomes of the decision as pixels are replaced in the order of their relevance."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rapkernels import checks
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.metrics.decisions import check_images, classes_of, logits_of
from rapkernels.metrics.maps import checked_maps
from rapkernels.targets import Target

Order = Literal["morf", "lerf"]
Score = Literal["probability", "logit", "accuracy"]


def perturbation(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    order: Order = "morf",
    pixels: int = 100,
    steps: int = 40,
    value: float | Tensor = 0.0,
    target: Target = None,
    score: Score = "probability",
    batch_size: int = 32,
) -> Tensor:
    """The score of the target as pixels are set to a value, most or least relevant first.

    ``f(x^(k))`` for k = 0 .. steps, where ``x^(k)`` has the first ``k * pixels`` pixels of the
    order replaced in all channels: "morf" by descending relevance (Samek et al., TNNLS 2017; lower
    is better), "lerf" by ascending relevance (higher is better; RAP, Nam et al., AAAI 2020, whose
    protocol the defaults of ``pixels``, ``steps`` and ``value`` are). Pixels of equal relevance are
    taken row by row. RAP plots the accuracy (``score="accuracy"``, then the mean over samples).

    Args:
        model: in eval mode; takes ``(N, C, H, W)`` and returns logits ``(N, classes)``.
        x: ``(N, C, H, W)``, finite.
        maps: ``(N, H, W)``, floating-point, finite.
        order: "morf" or "lerf".
        pixels: how many are replaced in each step.
        steps: how many steps; ``pixels * steps`` is at most ``H * W``.
        value: what replaces a pixel: a number, or a tensor that broadcasts to ``x``.
        target: the class: None for the class predicted for ``x``, an int for all samples, or a
            list, tuple or tensor ``(N,)``.
        score: "probability" (softmax), "logit", or "accuracy" (1 where the target is the predicted
            class, else 0).
        batch_size: how many images the model takes at once.

    Returns:
        ``(N, steps + 1)``, float64. :func:`aopc` sums it up.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: an argument has the wrong shape or value, or the model does not return
            ``(N, classes)``.
        TrainingModeError: the model is in train mode with layers that behave differently there.
        NonFiniteOutputError: the model returns NaN or infinite logits.
    """
    checks.check_choice("order", order, ("morf", "lerf"))
    _check_count("pixels", pixels)
    _check_count("steps", steps)
    maps = _checked(model, x, maps)
    available = math.prod(maps.shape[1:])
    if pixels * steps > available:
        raise ArgumentError(
            f"pixels * steps must be at most the number of pixels, {available}, got "
            f"{pixels} * {steps}"
        )
    counts = [pixels * step for step in range(steps + 1)]
    replaced = _expand("value", value, x)
    scorer = _Scorer(model, x, target, score, batch_size)
    return scorer.curves(x, replaced, maps if order == "lerf" else -maps, counts)


def deletion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    baseline: float | Tensor = 0.0,
    steps: int = 100,
    target: Target = None,
    score: Score = "probability",
    batch_size: int = 32,
) -> Tensor:
    """The score of the target as the image turns into the baseline, most relevant pixels first.

    ``f(x^(k))`` for k = 0 .. steps, where ``x^(k)`` has the ``round(k * H * W / steps)`` most
    relevant pixels replaced by those of the baseline (RISE, Petsiuk et al., BMVC 2018); a small
    area (:func:`auc`) is better.

    Args:
        model: in eval mode; takes ``(N, C, H, W)`` and returns logits ``(N, classes)``.
        x: ``(N, C, H, W)``, finite.
        maps: ``(N, H, W)``, floating-point, finite.
        baseline: a number, or a tensor that broadcasts to ``x``, such as a blurred ``x``.
        steps: at most ``H * W``.
        target: as in :func:`perturbation`.
        score: as in :func:`perturbation`.
        batch_size: how many images the model takes at once.

    Returns:
        ``(N, steps + 1)``, float64.

    Raises:
        As :func:`perturbation`.
    """
    maps = _checked(model, x, maps)
    counts = _fractions(maps, steps)
    replaced = _expand("baseline", baseline, x)
    return _Scorer(model, x, target, score, batch_size).curves(x, replaced, -maps, counts)


def insertion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    baseline: float | Tensor = 0.0,
    steps: int = 100,
    target: Target = None,
    score: Score = "probability",
    batch_size: int = 32,
) -> Tensor:
    """The score of the target as the baseline turns into the image, most relevant pixels first.

    ``f(x^(k))`` for k = 0 .. steps, where ``x^(k)`` is the baseline with the
    ``round(k * H * W / steps)`` most relevant pixels of ``x`` (RISE, Petsiuk et al., BMVC 2018); a
    large area (:func:`auc`) is better. Attribution Equilibrium (Nam et al., TPAMI 2024) names
    insertion by most relevant regions first; that it is this one, by pixels, is inferred.

    Args:
        model: in eval mode; takes ``(N, C, H, W)`` and returns logits ``(N, classes)``.
        x: ``(N, C, H, W)``, finite.
        maps: ``(N, H, W)``, floating-point, finite.
        baseline: a number, or a tensor that broadcasts to ``x``, such as a blurred ``x``.
        steps: at most ``H * W``.
        target: as in :func:`perturbation`; None is the class predicted for ``x``, not for the
            baseline.
        score: as in :func:`perturbation`.
        batch_size: how many images the model takes at once.

    Returns:
        ``(N, steps + 1)``, float64.

    Raises:
        As :func:`perturbation`.
    """
    maps = _checked(model, x, maps)
    counts = _fractions(maps, steps)
    start = _expand("baseline", baseline, x)
    return _Scorer(model, x, target, score, batch_size).curves(start, x, -maps, counts)


def aopc(curves: Tensor) -> Tensor:
    """The area over the perturbation curve (Samek et al., TNNLS 2017).

    ``1 / (L + 1) * sum_{k=0..L} (f(x^(0)) - f(x^(k)))`` with L steps. Higher is better for "morf",
    lower for "lerf"; 0 for a curve that never moves.

    Args:
        curves: ``(N, L + 1)``, as :func:`perturbation` returns them.

    Returns:
        ``(N,)``, float64.

    Raises:
        ArgumentTypeError: curves are not a floating-point tensor.
        ArgumentError: curves have another shape or fewer than 2 points.
    """
    values = _checked_curves(curves)
    return (values[:, :1] - values).mean(1)


def auc(curves: Tensor) -> Tensor:
    """The area under a curve over [0, 1], by the trapezoidal rule.

    ``1 / L * (f_0 / 2 + f_1 + ... + f_{L-1} + f_L / 2)`` with L steps, taken as equally wide (RISE,
    Petsiuk et al., BMVC 2018).

    Args:
        curves: ``(N, L + 1)``, as :func:`insertion` and :func:`deletion` return them.

    Returns:
        ``(N,)``, float64.

    Raises:
        ArgumentTypeError: curves are not a floating-point tensor.
        ArgumentError: curves have another shape or fewer than 2 points.
    """
    values = _checked_curves(curves)
    return (values[:, 1:] + values[:, :-1]).mean(1) / 2


class _Scorer:
    """The score of each sample's target, for images between two others."""

    def __init__(
        self, model: nn.Module, x: Tensor, target: Target, score: Score, batch_size: int
    ) -> None:
        checks.check_choice("score", score, ("probability", "logit", "accuracy"))
        _check_count("batch_size", batch_size)
        self._model, self._score, self._batch_size = model, score, batch_size
        self._targets = classes_of(target, logits_of(model, x, batch_size))

    @torch.no_grad()
    def curves(self, start: Tensor, end: Tensor, order: Tensor, counts: list[int]) -> Tensor:
        """Scores of ``start`` with the ``counts[k]`` pixels of lowest order taken from ``end``."""
        samples, height, width = order.shape
        places = order.flatten(1).argsort(dim=1, stable=True)
        ranks = places.argsort(dim=1)
        limits = torch.tensor(counts, device=order.device)
        scores = torch.empty(samples * len(counts), dtype=torch.float64, device=order.device)
        everything = torch.arange(len(scores), device=order.device)
        for jobs in torch.split(everything, self._batch_size):
            sample = jobs // len(counts)
            taken = ranks[sample] < limits[jobs % len(counts), None]
            taken = taken.view(-1, 1, height, width)
            images = torch.where(taken, end[sample], start[sample])
            logits = logits_of(self._model, images, self._batch_size)
            scores[jobs] = self._scores(logits, self._targets[sample])
        return scores.view(samples, len(counts))

    def _scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self._score == "accuracy":
            return (logits.argmax(1) == targets).double()
        values = logits.softmax(1) if self._score == "probability" else logits
        return values.gather(1, targets[:, None])[:, 0]


def _checked(model: Any, x: Any, maps: Any) -> Tensor:
    """Check what all curves need; the maps in float64, on the device of ``x``."""
    check_images(model, x)
    checked = checked_maps(maps)
    wanted = [x.shape[0], *x.shape[2:]]
    if list(checked.shape) != wanted:
        raise ArgumentError(
            f"maps must have the batch and the size of x, {wanted}, got shape {list(checked.shape)}"
        )
    return checked.to(x.device)


def _fractions(maps: Tensor, steps: Any) -> list[int]:
    """How many pixels each step of a curve over the whole image has replaced."""
    _check_count("steps", steps)
    pixels = math.prod(maps.shape[1:])
    if steps > pixels:
        raise ArgumentError(f"steps must be at most the number of pixels, {pixels}, got {steps}")
    return [round(step * pixels / steps) for step in range(steps + 1)]


def _expand(name: str, value: Any, x: Tensor) -> Tensor:
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise ArgumentTypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    tensor = torch.as_tensor(value, dtype=x.dtype, device=x.device).detach()
    if not bool(torch.isfinite(tensor).all()):
        raise ArgumentError(f"{name} must be finite, got NaN or infinite entries")
    try:
        return tensor.expand(x.shape)
    except RuntimeError as error:
        raise ArgumentError(
            f"{name} must broadcast to x of shape {list(x.shape)}, got shape {list(tensor.shape)}"
        ) from error


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ArgumentError(f"{name} must be at least 1, got {value}")


def _checked_curves(curves: Any) -> Tensor:
    if not isinstance(curves, Tensor) or not curves.dtype.is_floating_point:
        got = curves.dtype if isinstance(curves, Tensor) else type(curves).__name__
        raise ArgumentTypeError(f"curves must be a floating-point tensor, got {got}")
    if curves.dim() != 2 or curves.shape[1] < 2:
        raise ArgumentError(
            f"curves must have shape (N, points) with at least 2 points, got {list(curves.shape)}"
        )
    return curves.detach().double()
