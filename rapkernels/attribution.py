"""The public calls: :func:`attribute` and :class:`RAP`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from rapkernels import checks
from rapkernels.backends import Backend, check_backend, resolve_backend
from rapkernels.cache import cache_of
from rapkernels.errors import (
    ArgumentError,
    ExportError,
    NonFiniteOutputError,
    NonPositiveTargetWarning,
)
from rapkernels.findings import Findings, warn
from rapkernels.plan import Plan, make_plan
from rapkernels.program import Program
from rapkernels.report import Recorder, Report
from rapkernels.targets import Target, resolve_target
from rapkernels.variants import VARIANTS
from rapkernels.walker import Walk

Bound = float | Tensor
VariantName = Literal["default", "paper", "author"]
METHODS = ("rap",)

Maps = Tensor | tuple[Any, ...]


class Explained(NamedTuple):
    """What one run of a program gives: maps of the input and of nodes, and what was explained."""

    relevance: Tensor
    exposed: dict[str, Tensor]
    target: Tensor
    score: Tensor


class RAP:
    """Relative Attributing Propagation (Nam et al., AAAI 2020) of any module.

    The module is exported once per input shape, never modified, and its parameters are read anew at
    each call. An explainer may be used by several threads at once.

    On a GPU a call waits for the device once, at its end, to read whether the input was finite and
    so on. It can be captured in a CUDA graph, without those checks, once a call with an input of
    this shape has come before.

    Args:
        model: the module to explain, in eval mode. It takes one tensor and returns one.
        variant: "default", "paper" (Eq. 7 in convolutions too) or "author" (the published code,
            quirks included).
        bounds: (low, high), the smallest and largest values that inputs can take, for the input
            layer's rule (Eq. 10): numbers, or tensors that broadcast to ``x``. None takes each
            sample's own.
        backend: "auto" (native where built), "native" or "reference".

    Raises:
        ArgumentTypeError: ``model`` is not a module, or ``bounds`` is not a pair of numbers or
            tensors.
        ArgumentError: ``variant`` or ``backend`` is not known.
        BackendError: the native backend is asked for and not built.
    """

    def __init__(
        self,
        model: nn.Module,
        variant: VariantName = "default",
        bounds: tuple[Bound, Bound] | None = None,
        backend: Backend = "auto",
    ) -> None:
        checks.check_model(model)
        checks.check_choice("variant", variant, VARIANTS)
        checks.check_bounds_form(bounds)
        check_backend(backend)
        self.model = model
        self.variant = variant
        self.bounds = bounds
        self.backend = backend
        resolve_backend(backend)

    @override
    def __repr__(self) -> str:
        return (
            f"RAP({type(self.model).__name__}, variant={self.variant!r}, bounds={self.bounds!r}, "
            f"backend={self.backend!r})"
        )

    @overload
    def attribute(self, x: Tensor, target: Target = None) -> Tensor: ...

    @overload
    def attribute(
        self, x: Tensor, target: Target = None, *, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    @overload
    def attribute(
        self, x: Tensor, target: Target = None, layers: None = None, *, return_report: Literal[True]
    ) -> tuple[Tensor, Report]: ...

    @overload
    def attribute(
        self,
        x: Tensor,
        target: Target = None,
        *,
        layers: Sequence[str],
        return_report: Literal[True],
    ) -> tuple[Tensor, dict[str, Tensor], Report]: ...

    def attribute(
        self,
        x: Tensor,
        target: Target = None,
        layers: Sequence[str] | None = None,
        return_report: bool = False,
    ) -> Maps:
        """Explain one output of each sample.

        Args:
            x: ``(N, ...)``, what the model takes; float64, float32, bfloat16 or float16, finite.
            target: which output: None for the predicted class, an int for all samples, or a list,
                tuple or tensor ``(N,)``. Where the output has more than two dimensions: an index
                tuple without the batch dimension, or a list of them.
            layers: paths of modules (as in ``model.named_modules()``) whose output's relevance is
                wanted too: that of the last value that the module computes.
            return_report: whether to return the conservation report too.

        Returns:
            The relevance of ``x``, of its shape, dtype and device, detached; its sum is the logit
            of the target less what was absorbed. With ``layers`` or ``return_report`` a tuple of
            it, a dict from path to relevance, and a :class:`~rapkernels.report.Report`, as asked.

        Raises:
            ArgumentError, ArgumentTypeError: an argument cannot be used; the message says why.
            TrainingModeError: BatchNorm or Dropout modules are in train mode.
            ExportError: ``torch.export`` cannot export the model, or not while a CUDA graph is
                captured.
            BackendError: the native backend is asked for and has no kernels for the device.
            UnsupportedOperationError: the model has operations without a rule.
            NonFiniteOutputError: the model's output is NaN or infinite.

        Warns:
            NonPositiveTargetWarning: a target's logit is not positive.
        """
        return self._attribute(x, target, layers, return_report)

    def plan(self, x: Tensor) -> Plan:
        """Return which rule each operation gets for inputs like ``x``; print it for a table.

        Args:
            x: as for :meth:`attribute`.

        Raises:
            As :meth:`attribute`, but for what needs a run of the model.
        """
        checks.check_eval_mode(self.model)
        checks.check_input(self.model, x)
        findings = Findings(x.device)
        checks.check_finite(x, findings)
        findings.settle()
        with _settings(x):
            return make_plan(self._program(x, findings), x.shape[0])

    def _program(self, x: Tensor, findings: Findings) -> Program:
        # An empty batch cannot be exported with a fixed batch size.
        like = x if x.shape[0] else x.new_zeros((1, *x.shape[1:]))
        cache = cache_of(self.model)
        if findings.capturing and not cache.has_graph(self.model, like):
            raise ExportError(
                "model must have been exported before a CUDA graph is captured: call attribute "
                f"once with an input of shape {list(x.shape)} before capturing"
            )
        return cache.program(self.model, like, VARIANTS[self.variant])

    def _attribute(
        self, x: Tensor, target: Target, layers: Sequence[str] | None, return_report: bool
    ) -> Maps:
        checks.check_eval_mode(self.model)
        checks.check_input(self.model, x)
        findings = Findings(x.device)
        if findings.capturing and return_report:
            raise ArgumentError(
                "return_report must be False while a CUDA graph is captured, got True: a report is "
                "read on the host, so ask for it in a call outside of the capture"
            )
        checks.check_finite(x, findings)
        checks.check_layers_form(layers)
        bounds = checks.expand_bounds(self.bounds, x, findings)
        with _settings(x):
            program = self._program(x, findings)
            output_shape = _output_shape(program, x.shape[0])
            chosen = resolve_target(target, output_shape, x.device, findings)
            nodes = _nodes_of_layers(program, layers or (), self.model)
            recorder = Recorder(x.shape[0]) if return_report else None
            if x.shape[0] == 0:
                explained = _empty(program, x, set(nodes.values()))
            else:
                walk = Walk(
                    program,
                    program.graph.values(self.model),
                    resolve_backend(self.backend, x.device),
                    recorder,
                )
                explained = run(walk, x, chosen, bounds, set(nodes.values()), findings)
            findings.settle()
            returned: list[Any] = [explained.relevance]
            if layers is not None:
                returned.append({path: explained.exposed[name] for path, name in nodes.items()})
            if recorder is not None:
                returned.append(
                    recorder.report(explained.target, explained.score, explained.relevance)
                )
        return returned[0] if len(returned) == 1 else tuple(returned)


def run(
    walk: Walk,
    x: Tensor,
    chosen: Tensor | None,
    bounds: tuple[Tensor, Tensor] | None,
    exposed: set[str],
    findings: Findings,
) -> Explained:
    """Run a program forward and back; reads nothing from a device.

    Args:
        walk: the program, ready to run.
        x: ``(N, ...)``, the input, N at least 1.
        chosen: ``(N,)`` int64, flat indices into the outputs; None for the largest.
        bounds: lowest and highest values of ``x``, of its shape.
        exposed: names of nodes whose relevance is wanted.
        findings: takes the checks of the output.
    """
    graph, samples = walk.program.graph, x.shape[0]
    output = walk.forward(_fast_layout(x), bounds)
    scores = output.reshape(samples, -1)
    finite = torch.isfinite(scores).all(1)
    findings.check(finite, lambda: ~finite.all(), partial(_refuse_non_finite, finite))
    index = scores.argmax(1) if chosen is None else chosen
    score = scores.gather(1, index[:, None])[:, 0]
    findings.check(score, lambda: (score <= 0).any(), partial(_warn_of_non_positive, score))
    start = torch.zeros_like(scores).scatter_(1, index[:, None], score[:, None])
    shape = output.shape
    del output, scores
    arrived, maps = walk.backward(start.reshape(shape), exposed)
    relevance = _laid_out_like(x, torch.zeros_like(x) if arrived is None else arrived)
    found = {
        name: maps[name].contiguous()
        if name in maps
        else x.new_zeros(graph.sized(graph.shape_of(name), samples))
        for name in exposed
    }
    return Explained(relevance, found, index, score)


def attribute(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    method: str = "rap",
    variant: VariantName = "default",
    backend: Backend = "auto",
) -> Tensor:
    """Return the relevance of ``x`` for the decision of a model.

    The same as ``RAP(model, variant=variant, backend=backend).attribute(x, target)``: see
    :class:`RAP` and :meth:`RAP.attribute` for arguments and errors. A loop over it exports the
    model once.

    Args:
        model: the module to explain, in eval mode.
        x: ``(N, ...)``, what the model takes.
        target: which output to explain; None for the predicted class.
        method: "rap".
        variant: "default", "paper" or "author".
        backend: "auto", "native" or "reference".
    """
    checks.check_choice("method", method, METHODS)
    result: Tensor = RAP(model, variant, None, backend)._attribute(x, target, None, False)  # type: ignore[assignment]
    return result


@contextmanager
def _settings(x: Tensor) -> Iterator[None]:
    """Neither gradients nor autocast nor inference mode, whatever the caller has switched on."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(x.device.type, enabled=False),
    ):
        yield


# The CPU's convolutions were measured 10 to 30 % faster in channels-last; on CUDA it is the layout
# of the tensor cores, which float64 does not use.
_CHANNELS_LAST = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def _fast_layout(x: Tensor) -> Tensor:
    """Images in channels-last, where that is the faster layout of the device."""
    if x.dim() == 4 and x.dtype in _CHANNELS_LAST.get(x.device.type, ()):
        return x.detach().contiguous(memory_format=torch.channels_last)
    return x.detach()


def _laid_out_like(x: Tensor, relevance: Tensor) -> Tensor:
    result = torch.empty_like(x)
    if relevance.stride() == result.stride():
        return relevance
    return result.copy_(relevance)


def _output_shape(program: Program, samples: int) -> torch.Size:
    graph = program.graph
    shape = graph.sized(graph.shape_of(graph.output), samples)
    if not shape or (graph.batch is not None and shape[0] != samples):
        raise ArgumentError(
            "model must return one row of outputs per sample, but for a batch of "
            f"{samples} it returns shape {list(shape)}"
        )
    return torch.Size((samples, *shape[1:]))


def _nodes_of_layers(program: Program, layers: Sequence[str], model: nn.Module) -> dict[str, str]:
    """Module path -> the last node that belongs to it."""
    last = {
        path: step.node.name
        for step in program.steps
        if step.rule is not None
        for path in step.node.modules
    }
    for layer in layers:
        if layer not in last:
            raise checks.unknown_layer(layer, model, last)
    return {layer: last[layer] for layer in layers}


def _refuse_non_finite(finite: Tensor) -> NoReturn:
    samples = _listed((~finite).nonzero()[:, 0].tolist())
    raise NonFiniteOutputError(
        f"model must return finite outputs, got NaN or infinity for sample(s) {samples}"
    )


def _warn_of_non_positive(score: Tensor) -> None:
    found = {sample: value for sample, value in enumerate(score.tolist()) if value <= 0}
    logits = _listed([f"{value:.4g}" for value in found.values()])
    warn(
        f"the target's logit is not positive for sample(s) {_listed(list(found))} (logit "
        f"{logits}): the map is then the inverse of a positive class's map",
        NonPositiveTargetWarning,
    )


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")


def _empty(program: Program, x: Tensor, exposed: set[str]) -> Explained:
    graph = program.graph
    found = {name: x.new_zeros((0, *graph.sized(graph.shape_of(name), 0)[1:])) for name in exposed}
    none = x.new_zeros(0)
    return Explained(torch.empty_like(x), found, none.to(torch.int64), none)
