"""The conservation report: what each step received, handed on and absorbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph
from rapkernels.program import Step
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context
from rapkernels.tables import format_table


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


@dataclass(frozen=True)
class Report:
    """What happened to the relevance of one call, step by step from the output to the input.

    All tensors are on the CPU.

    Attributes:
        rows: one per step that relevance went through.
        target: ``(N,)`` int64, the flat index of the output that was explained.
        score: ``(N,)``, its value: the relevance that was sent back.
        total: ``(N,)`` float64, sum of the relevance of the input.
    """

    rows: tuple[ReportRow, ...]
    target: Tensor
    score: Tensor
    total: Tensor

    def worst(self) -> ReportRow:
        """The step with the largest conservation error.

        Raises:
            ValueError: the report has no rows (an empty batch).
        """
        if not self.rows or not self.rows[0].error.numel():
            raise ValueError("the report of an empty batch has no worst row")
        return max(self.rows, key=lambda row: float(row.error.max()))

    @override
    def __str__(self) -> str:
        header = ("node", "module", "operation", "rule")
        sums = ("received", "handed on", "absorbed", "magnitude", "error", "largest")
        body = [
            (
                row.node,
                row.module,
                row.operation,
                row.rule,
                *(_number(value) for value in _worst_sample(row)),
                str(int(row.zeros.sum())),
                str(int(row.non_finite.sum())),
            )
            for row in self.rows
        ]
        table = format_table((*header, *sums, "zeros", "non-finite"), body)
        lines = [
            f"target {self.target.tolist()}",
            f"score {[float(_number(value)) for value in self.score.tolist()]}",
            f"total {[float(_number(value)) for value in self.total.tolist()]}",
            "Sums are those of the sample with the largest error in the row; zeros and non-finite "
            "entries are counted over the batch.",
        ]
        return "\n".join([table, *lines])


def _number(value: float) -> str:
    return f"{value:.4g}"


def _worst_sample(row: ReportRow) -> tuple[float, ...]:
    columns = row.received, row.handed_on, row.absorbed, row.magnitude, row.error, row.largest
    if not row.error.numel():
        return (0.0,) * len(columns)
    worst = int(row.error.argmax())
    return tuple(float(column[worst]) for column in columns)


class Recorder:
    """Makes the report while a walk goes backward, on the device that the walk runs on.

    Args:
        graph: the graph that the walk goes through.
        samples: the batch size N.
    """

    def __init__(self, graph: Graph, samples: int) -> None:
        self._graph = graph
        self._samples = samples
        self._steps: list[Step] = []
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []

    def __call__(
        self,
        step: Step,
        context: Context,
        relevance: Relevance,
        states: Sequence[Relevance | None],
    ) -> None:
        """Measure one backward step."""
        together = not all(map(self._graph.leads_with_batch, (step.node.name, *step.inputs)))
        arrived = self._per_sample(relevance.to_float64(), together)
        parts = [
            self._per_sample(state.to_float64(), together) for state in states if state is not None
        ]
        left = torch.cat(parts, 1) if parts else arrived.new_zeros(self._samples, 0)
        zero = arrived.new_zeros(self._samples)
        absorbed = (
            zero
            if context.absorbed is None
            else self._per_sample(context.absorbed, together).sum(1)
        )
        received, handed_on = arrived.sum(1), left.sum(1)
        magnitude = torch.maximum(arrived.abs().sum(1), left.abs().sum(1))
        difference = (received - handed_on - absorbed).abs()
        error = torch.where(magnitude > 0, difference / magnitude, difference)
        largest = left.abs().amax(1) if left.shape[1] else zero
        self._steps.append(step)
        self._sums.append(torch.stack([received, handed_on, absorbed, magnitude, error, largest]))
        self._counts.append(torch.stack([(left == 0).sum(1), (~torch.isfinite(left)).sum(1)]))

    def report(self, target: Tensor, score: Tensor, relevance: Tensor) -> Report:
        """Bring what was measured to the host.

        Args:
            target: ``(N,)`` int64, the flat index of the output that was explained.
            score: ``(N,)``, its value.
            relevance: the relevance of the input.
        """
        total = relevance.to(torch.float64).flatten(1).sum(1)
        sums = torch.stack(self._sums).cpu() if self._sums else ()
        counts = torch.stack(self._counts).cpu() if self._counts else ()
        rows = tuple(
            _row(step, *measured, *counted)
            for step, measured, counted in zip(self._steps, sums, counts, strict=True)
        )
        return Report(rows, target.cpu(), score.cpu(), total.cpu())

    def _per_sample(self, tensor: Tensor, together: bool) -> Tensor:
        """``(N, entries)``; what cannot be told apart by sample is spread evenly over them."""
        tensor = tensor.detach().to(torch.float64)
        if not together and tensor.dim() and tensor.shape[0] % self._samples == 0:
            return tensor.reshape(self._samples, -1)
        return tensor.reshape(1, -1).expand(self._samples, -1) / self._samples


def _row(step: Step, *measured: Tensor) -> ReportRow:
    rule = step.rule
    assert rule is not None
    node = step.node
    return ReportRow(node.name, node.module, node.operation, rule.name, *measured)
