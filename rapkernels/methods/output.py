"""Methods that send the model's output back: where relevance starts there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels import calls
from rapkernels.calls import Start
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.explainer import Explainer, Maps
from rapkernels.findings import Findings
from rapkernels.inputs import Several
from rapkernels.parts import BeginOf
from rapkernels.report import Report
from rapkernels.targets import Target
from rapkernels.walker import Walk

OutputRelevance = Literal["logit", "ones"] | Tensor


class OutputExplainer(Explainer):
    """An explainer whose relevance starts at the model's output."""

    @overload
    def attribute(
        self, x: Tensor, target: Target = None, *, output_relevance: OutputRelevance = "logit"
    ) -> Tensor: ...

    @overload
    def attribute(
        self,
        x: Tensor,
        target: Target = None,
        *,
        layers: Sequence[str],
        output_relevance: OutputRelevance = "logit",
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    @overload
    def attribute(
        self,
        x: Tensor,
        target: Target = None,
        layers: None = None,
        *,
        return_report: Literal[True],
        output_relevance: OutputRelevance = "logit",
    ) -> tuple[Tensor, Report]: ...

    @overload
    def attribute(
        self,
        x: Tensor,
        target: Target = None,
        *,
        layers: Sequence[str],
        return_report: Literal[True],
        output_relevance: OutputRelevance = "logit",
    ) -> tuple[Tensor, dict[str, Tensor], Report]: ...

    @overload
    def attribute(
        self,
        x: Several,
        target: Target = None,
        layers: Sequence[str] | None = None,
        return_report: bool = False,
        output_relevance: OutputRelevance = "logit",
    ) -> Any: ...

    @override
    def attribute(
        self,
        x: Tensor | Several,
        target: Target = None,
        layers: Sequence[str] | None = None,
        return_report: bool = False,
        output_relevance: OutputRelevance = "logit",
    ) -> Maps:
        """Explain one output of each sample, or what the caller gives for the output.

        Args:
            x: what the model takes, as for :class:`~rapkernels.explainer.Explainer`: ``(N, ...)``,
                float64, float32, bfloat16 or float16, finite; or several in a tuple, list or dict.
            target: which output: None for the predicted class, an int for all samples, or a list,
                tuple or tensor ``(N,)``. Where the output has more than two dimensions: an index
                tuple without the batch dimension, a list of them, or a
                :class:`rapkernels.MaskedTarget`.
            layers: paths of modules (as in ``model.named_modules()``) whose output's relevance is
                wanted too: that of the last value that the module computes.
            return_report: whether to return the conservation report too.
            output_relevance: what is sent back: "logit", the value of the target's output; "ones",
                1 at the target; or a tensor of the output's shape, in the dtype and on the device
                of ``x``, with ``target`` None.

        Returns:
            The relevance of ``x``, of its shape, dtype and device, detached; its sum is what was
            sent back less what was absorbed. For several inputs a tuple, with None in the place of
            constants, or a dict without them, and the sum over all. With ``layers`` or
            ``return_report`` a tuple of it, a dict from path to relevance, and a
            :class:`~rapkernels.report.Report`, as asked.

        Raises:
            ArgumentError, ArgumentTypeError: an argument cannot be used; the message says why.
            TrainingModeError: BatchNorm or Dropout modules are in train mode.
            ExportError: ``torch.export`` cannot export the model, or not while a CUDA graph is
                captured.
            BackendError: the native backend is asked for and has no kernels for the device.
            UnsupportedOperationError: the model has operations without a rule.
            NonFiniteOutputError: the model's output is NaN or infinite.

        Warns:
            NonPositiveTargetWarning: the target's logit is sent back and is not positive.
        """
        begin: BeginOf | None = None
        if isinstance(output_relevance, Tensor):
            if target is not None:
                raise ArgumentError(
                    "target must be None where output_relevance is a tensor, which says what to "
                    f"explain, got {target!r}"
                )
            inputs, _ = self._check(x)
            target = _any_target(output_relevance)
            given, samples = output_relevance, inputs.samples
            begin = lambda part: partial(_begin_given, given, part, samples)  # noqa: E731
        elif output_relevance == "ones":
            begin = lambda _: _begin_ones  # noqa: E731
        elif output_relevance != "logit":
            raise ArgumentTypeError(
                'output_relevance must be "logit", "ones" or a tensor shaped like the output, got '
                f"{output_relevance!r}"
            )
        return self._attribute(x, target, layers, return_report, begin=begin)

    @override
    def _begin(self, walk: Walk, output: Tensor, target: Tensor, findings: Findings) -> Start:
        start = calls.start_from_output(output, target)
        if findings.targets == 1:
            # Of several targets most lose.
            calls.warn_of_non_positive(start.score, findings)
        return start


def _begin_ones(_walk: Walk, output: Tensor, target: Tensor, _findings: Findings) -> Start:
    return calls.start_from_output(torch.ones_like(output), target)


def _begin_given(
    given: Tensor,
    part: slice,
    samples: int,
    _walk: Walk,
    output: Tensor,
    _target: Tensor,
    findings: Findings,
) -> Start:
    shape = (samples, *output.shape[1:])
    if given.shape != shape or given.dtype != output.dtype or given.device != output.device:
        raise ArgumentError(
            f"output_relevance must have the shape {list(shape)}, the dtype {output.dtype} "
            f"and the device {output.device} of the output, got {list(given.shape)}, "
            f"{given.dtype} and {given.device}"
        )

    def complain() -> None:
        raise ArgumentError("output_relevance must be finite, got NaN or infinite entries")

    findings.check(given, lambda: ~torch.isfinite(given).all(), complain)
    start = given[part].detach()
    return Start(start, False, start.flatten(1).sum(1)[None])


def _any_target(given: Tensor) -> Any:
    """A target that fits the output: it is not read."""
    return (0,) * (given.dim() - 1) if given.dim() > 2 else 0
