"""What a report holds: one row per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.tables import Rows, data_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class ReportRow:
    """One step of the way from the output to the input; every tensor is ``(N,)``.

    Attributes:
        node, module, operation, rule: which step.
        received: sum of the relevance that arrived (float64).
        handed_on: sum of the relevance given to the step's inputs (float64).
        absorbed: relevance that met no message (float64).
        magnitude: the larger of the sums of absolute relevance that arrived and that was handed on
            (float64).
        error: ``|received - handed_on - absorbed| / magnitude``, 0 where both are 0 (float64).
        largest: largest absolute relevance handed on (float64).
        zeros: number of zeros handed on (int64).
        non_finite: number of NaN and infinite entries handed on (int64).
        forward_seconds: time of the operation's forward, of the whole batch.
        backward_seconds: time of its rule, likewise, with the adding of relevance where branches
            meet. What the report itself measures is not in it.
    """

    node: str
    module: str
    operation: str
    rule: str
    received: Tensor
    handed_on: Tensor
    absorbed: Tensor
    magnitude: Tensor
    error: Tensor
    largest: Tensor
    zeros: Tensor
    non_finite: Tensor
    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        """Time of the forward and the backward together."""
        return self.forward_seconds + self.backward_seconds


@dataclass(frozen=True)
class Report(Rows[ReportRow]):
    """What happened to the relevance of one call, step by step from the output to the input.

    All tensors are on the CPU. Iterate over it for its rows, or take one by its node, as in
    ``report["conv2d"]``; print it for a table. On CUDA times are those between events on the
    stream, so that they hold the gaps in which the device waits for the host.

    Attributes:
        rows: one per step that relevance went through.
        target: ``(N,)`` int64, the flat index of the output that was explained; of a
            :class:`rapkernels.MaskedTarget` bool of the output's shape, its entries.
        score: ``(N,)``, its value, or the sum of its entries, or of the relevance that the caller
            gave in its place.
        total: ``(N,)`` float64, sum of the relevance of the input, or of all inputs.
        other_seconds: time of the operations without a row: their forward is all that they need.
    """

    rows: tuple[ReportRow, ...]
    target: Tensor
    score: Tensor
    total: Tensor
    other_seconds: float = 0.0

    @classmethod
    def joined(cls, reports: Sequence[Report]) -> Report:
        """One report of the samples of several, which have the same rows; times are summed."""
        rows = tuple(
            ReportRow(**_joined(same))
            for same in zip(*(report.rows for report in reports), strict=True)
        )
        return cls(**{**_joined(reports), "rows": rows})

    @property
    def sent(self) -> Tensor:
        """``(N,)`` float64, sum of the relevance that was sent back: the score, if that was."""
        return self.rows[0].received if self.rows else self.score.to(torch.float64)

    def over_sent(self, sums: Tensor) -> Tensor:
        """Sums ``(N,)`` of a row in units of what was sent back; as they are where that was 0."""
        return torch.where(self.sent != 0, sums / self.sent, sums)

    def worst(self) -> ReportRow:
        """The step with the largest conservation error; NaN counts as the largest.

        Raises:
            ValueError: the report has no rows (an empty batch).
        """
        if self.is_empty:
            raise ValueError("the report of an empty batch has no worst row")
        return max(self.rows, key=lambda row: worst_of(row.error))

    @property
    def is_empty(self) -> bool:
        """Whether it is that of an empty batch, or of a call in which nothing was sent back."""
        return not self.rows or not self.rows[0].error.numel()

    def targets(self) -> list[int | str]:
        """The target of each sample; "7 entries" of a :class:`rapkernels.MaskedTarget`."""
        if self.target.dtype != torch.bool:
            return list(self.target.tolist())
        return [f"{entries} entries" for entries in self.target.flatten(1).sum(1).tolist()]

    def to_frame(self) -> DataFrame:
        """A pandas data frame with one row per node and sample, the samples of a node together.

        Columns: ``node``, ``module``, ``operation``, ``rule``, ``sample`` (0 to N - 1), then
        ``target`` and ``score`` of the sample, then the attributes of :class:`ReportRow` in their
        order. Seconds of a node are spread evenly over its samples, so that all sums are those of
        the batch. One column with nodes down and samples across, in the order of the report::

            frame.pivot(index="node", columns="sample", values="error").loc[frame.node.unique()]

        Raises:
            MissingPackageError: pandas is not installed.
        """
        samples = len(self.target)
        columns: dict[str, Sequence[object]] = {}
        for field in fields(ReportRow):
            if field.name == "received":
                columns["sample"] = list(range(samples)) * len(self.rows)
                columns["target"] = self.targets() * len(self.rows)
                columns["score"] = self.score.tolist() * len(self.rows)
            values = (getattr(row, field.name) for row in self.rows)
            columns[field.name] = [cell for value in values for cell in _cells(value, samples)]
        return data_frame(columns)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw sums, absorbed relevance, errors and times along the network.

        Args:
            path: where to write the figure, as PNG or in the format that the suffix names; None
                only returns it.

        Returns:
            The matplotlib figure.

        Raises:
            MissingPackageError: matplotlib is not installed.
            FigureError: the file cannot be written, or its suffix names no format.
            ValueError: the report has no rows (an empty batch).
        """
        from rapkernels.figures import save_figure
        from rapkernels.report.plot import draw_report

        figure = draw_report(self)
        if path is not None:
            save_figure(figure, path)
        return figure

    @override
    def __str__(self) -> str:
        from rapkernels.report.text import format_report

        return format_report(self)


def worst_of(values: Tensor) -> float:
    """The largest of the values ``(N,)`` of a row, infinity where one is NaN."""
    found = float(values.max())
    return math.inf if math.isnan(found) else found


def _joined(parts: Sequence[Report] | Sequence[ReportRow]) -> dict[str, Any]:
    """The fields of several together: samples one after the other, sums of seconds."""

    def together(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        return sum(values) if isinstance(values[0], int | float) else values[0]

    return {
        field.name: together([getattr(part, field.name) for part in parts])
        for field in fields(parts[0])
    }


def _cells(value: object, samples: int) -> list[object]:
    """What a row has of each sample."""
    if isinstance(value, Tensor):
        return list(value.tolist())
    if isinstance(value, float):
        return [value / samples] * samples
    return [value] * samples
