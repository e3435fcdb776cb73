"""From cases and methods to a table."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rapkernels import checks

from .cases import Case, Cases, EvaluationError
from .columns import SECONDS, Column, Scene
from .methods import MapFunction, Method, Settings
from .table import Cell, Heading, Row, Table

Progress = Callable[[int], None]


@dataclass(frozen=True)
class _Batch:
    x: Tensor
    targets: Tensor
    others: Tensor
    classes: Tensor | None
    masks: Tensor | None


@dataclass
class _Counts:
    """What is told below the table."""

    labelled: int = 0
    correct: int = 0
    not_positive: int = 0


def evaluate(
    model: nn.Module,
    cases: Cases,
    methods: Sequence[Method],
    columns: Sequence[Column],
    *,
    title: str = "",
    settings: Settings | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Table:
    """Measure every method on every case.

    Args:
        model: a classifier in eval mode, from (N, C, H, W) to logits (N, classes).
        cases: at least one; all of one shape. Those without a target explain the predicted class.
        methods: rows of the table.
        columns: its metrics; seconds per image come last of themselves. Methods that share a
            network are timed by turns, a batch each.
        title: of the table.
        settings: of the methods.
        batch_size: how many cases go through the network together.
        progress: is called with the number of cases after each batch of each method;
            ``len(cases) * len(methods)`` in all.

    Raises:
        EvaluationError: no cases, cases of different shapes, a target that is no class of the
            network, a mask that a metric needs and a case has not, or a map of another size.
        RapError: what the network or a method does not allow.
    """
    checks.check_model(model)
    checks.check_eval_mode(model)
    if not len(cases):
        raise EvaluationError("there is nothing to evaluate: no cases.")
    functions = {method.name: method.build(model, settings or Settings()) for method in methods}
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    counts = _Counts()
    for start in range(0, len(cases), batch_size):
        part = cases[start : start + batch_size]
        batch = _collect(model, part, counts)
        for name, explain in functions.items():
            if start == 0:
                _explain(explain, batch, batch.targets, warm_up=True)
            for column, measured in _measure(model, explain, batch, columns).items():
                values[name, column] += measured
            if progress is not None:
                progress(len(part))
    headings = (*(column.heading for column in columns), SECONDS)
    rows = [
        Row(
            method.name,
            method.label,
            method.control,
            {
                heading.name: _cell(heading, values[method.name, heading.name])
                for heading in headings
            },
        )
        for method in methods
    ]
    return Table(title, len(cases), headings, tuple(rows), _notes(counts, len(cases)))


def with_targets(model: nn.Module, cases: Cases, batch_size: int = 8) -> Cases:
    """The cases, each with a class: where one has none, the predicted class becomes its target.

    Raises:
        EvaluationError: cases of different shapes, or a target that is no class of the network.
    """
    found: list[Case] = []
    for start in range(0, len(cases), batch_size):
        part = cases[start : start + batch_size]
        targets = _collect(model, part, _Counts()).targets.tolist()
        found += [
            replace(case, target=target, classes=case.classes or (target,))
            for case, target in zip(part, targets, strict=True)
        ]
    return found


def _collect(model: nn.Module, cases: Sequence[Case], counts: _Counts) -> _Batch:
    shapes = {tuple(case.pixels.shape) for case in cases}
    if len(shapes) > 1:
        raise EvaluationError(f"cases must have one shape, got {sorted(shapes)}.")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    x = torch.stack([case.pixels for case in cases]).to(device)
    logits = _logits(model, x)
    predicted = logits.argmax(dim=1)
    targets = predicted.clone()
    for row, case in enumerate(cases):
        if case.target is None:
            continue
        if not 0 <= case.target < logits.shape[1]:
            raise EvaluationError(
                f"{case.name}: the class must be between 0 and {logits.shape[1] - 1} for this "
                f"network, got {case.target}."
            )
        targets[row] = case.target
        counts.labelled += 1
        counts.correct += int(predicted[row]) in (case.target, *case.classes)
    chosen = targets[:, None]
    counts.not_positive += int((logits.gather(1, chosen) <= 0).sum())
    classes = _class_sets(cases, device)
    rivals = logits.scatter(1, chosen, -torch.inf)
    if classes is not None:
        shown = torch.zeros_like(rivals, dtype=torch.bool).scatter(1, classes, True)
        rivals = rivals.where(shown, -torch.inf)
    return _Batch(x, targets, rivals.argmax(dim=1), classes, _masks(cases, device))


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EvaluationError(f"the network must return logits (N, classes), got {got}.")
    return logits


def _class_sets(cases: Sequence[Case], device: torch.device) -> Tensor | None:
    """The classes that each case shows, where these are equally many and more than one."""
    sizes = {len(set(case.classes)) for case in cases}
    if len(sizes) != 1 or sizes <= {0, 1}:
        return None
    return torch.tensor([case.classes for case in cases], device=device)


def _masks(cases: Sequence[Case], device: torch.device) -> Tensor | None:
    masks = [case.mask for case in cases if case.mask is not None]
    for case in cases:
        if case.mask is not None and case.mask.shape != case.pixels.shape[-2:]:
            raise EvaluationError(
                f"{case.name}: the mask must have the size of the image, "
                f"{tuple(case.pixels.shape[-2:])}, got {tuple(case.mask.shape)}."
            )
    return torch.stack(masks).to(device) if len(masks) == len(cases) else None


def _measure(
    model: nn.Module, explain: MapFunction, batch: _Batch, columns: Sequence[Column]
) -> dict[str, list[float]]:
    if batch.masks is None and any(column.needs_masks for column in columns):
        raise EvaluationError("a metric needs to know where objects are, and a case has no mask.")
    started = time.perf_counter()
    maps = _explain(explain, batch, batch.targets)
    seconds = time.perf_counter() - started
    needed = any(column.needs_others for column in columns)
    others = _explain(explain, batch, batch.others) if needed else None
    scene = Scene(model, batch.x, batch.targets, batch.masks, batch.classes, others)
    measured = {column.heading.name: column.measure(maps, scene).tolist() for column in columns}
    measured[SECONDS.name] = [seconds / len(batch.x)] * len(batch.x)
    return measured


def _explain(explain: MapFunction, batch: _Batch, targets: Tensor, warm_up: bool = False) -> Tensor:
    """The maps of a batch; of its first sample alone to warm up. Waits until they are there."""
    part = slice(1 if warm_up else None)
    classes = None if batch.classes is None else batch.classes[part]
    maps = explain(batch.x[part], targets[part], classes)
    wanted = (len(batch.x[part]), *batch.x.shape[-2:])
    if tuple(maps.shape) != wanted:
        raise EvaluationError(f"maps must have shape {wanted}, got {tuple(maps.shape)}.")
    if maps.is_cuda:
        torch.cuda.synchronize(maps.device)
    return maps


def _cell(heading: Heading, values: Sequence[float]) -> Cell:
    cell = Cell.of(values)
    # The times of one batch are one measurement.
    return replace(cell, standard_error=math.nan) if heading is SECONDS else cell


def _notes(counts: _Counts, images: int) -> tuple[str, ...]:
    notes = []
    if counts.labelled:
        notes.append(
            f"The network's first choice is a class that is said to be there for {counts.correct} "
            f"of {counts.labelled}."
        )
    if counts.labelled < images:
        notes.append(f"The predicted class is explained for {images - counts.labelled}.")
    if counts.not_positive:
        notes.append(
            f"The explained class has a logit that is not positive for {counts.not_positive}: maps "
            "of relevance are then those of a positive class, inverted."
        )
    return tuple(notes)
