"""Makes the report while a walk runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor

from rapkernels.graph import Graph
from rapkernels.program import Step
from rapkernels.relevance import Relevance
from rapkernels.report.clock import Clock, Moment
from rapkernels.report.rows import Report, ReportRow
from rapkernels.rules.base import Context
from rapkernels.walker import Phase

_SUMS = "received", "handed_on", "absorbed", "magnitude", "error", "largest"
_COUNTS = "zeros", "non_finite"


class Recorder:
    """Observes a walk, on the device that it runs on; reads nothing before :meth:`report`.

    Args:
        graph: the graph that the walk goes through.
        samples: the batch size N.
        device: where the walk runs.
    """

    def __init__(self, graph: Graph, samples: int, device: torch.device) -> None:
        self._graph = graph
        self._samples = samples
        self._clock = Clock(device)
        self._spans: dict[tuple[Phase, str], tuple[Moment, Moment]] = {}
        self._steps: list[Step] = []
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []

    @contextmanager
    def timed(self, phase: Phase, step: Step) -> Iterator[None]:
        """Time a step's work in one direction."""
        begin = self._clock.now()
        yield
        self._spans[phase, step.node.name] = begin, self._clock.now()

    def went_back(
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

    def report(self, target: Tensor, score: Tensor, total: Tensor) -> Report:
        """Bring what was measured to the host.

        Args:
            target: of the report.
            score: of the report.
            total: of the report.
        """
        sums = torch.stack(self._sums).cpu() if self._sums else ()
        counts = torch.stack(self._counts).cpu() if self._counts else ()
        seconds = {key: self._clock.seconds(*span) for key, span in self._spans.items()}
        rows = tuple(
            self._row(step, [*measured, *counted], seconds)
            for step, measured, counted in zip(self._steps, sums, counts, strict=True)
        )
        return Report(rows, target.cpu(), score.cpu(), total.cpu(), sum(seconds.values()))

    def _per_sample(self, tensor: Tensor, together: bool) -> Tensor:
        """``(N, entries)``; what cannot be told apart by sample is spread evenly over them."""
        tensor = tensor.detach().to(torch.float64)
        if not together and tensor.dim() and tensor.shape[0] % self._samples == 0:
            return tensor.reshape(self._samples, -1)
        return tensor.reshape(1, -1).expand(self._samples, -1) / self._samples

    @staticmethod
    def _row(
        step: Step, measured: Sequence[Tensor], seconds: dict[tuple[Phase, str], float]
    ) -> ReportRow:
        """The row of a step; takes its times out of ``seconds``."""
        rule, node = step.rule, step.node
        assert rule is not None
        forward, backward = (seconds.pop((phase, node.name), 0.0) for phase in get_args(Phase))
        return ReportRow(
            node=node.name,
            module=node.module,
            operation=node.operation,
            rule=rule.name,
            forward_seconds=forward,
            backward_seconds=backward,
            **dict(zip(_SUMS + _COUNTS, measured, strict=True)),
        )
