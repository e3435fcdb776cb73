"""One run of a program, and what a call needs around it: settings, layouts, layers, checks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from rapkernels import checks
from rapkernels.cache import cache_of
from rapkernels.errors import (
    ArgumentError,
    ExportError,
    NonFiniteOutputError,
    NonPositiveTargetWarning,
)
from rapkernels.findings import Findings, warn
from rapkernels.graph import Graph
from rapkernels.inputs import Inputs
from rapkernels.layouts import memory_format_of
from rapkernels.outputs import OutputPath
from rapkernels.program import Program
from rapkernels.walker import Bounds, Walk


class Start(NamedTuple):
    """Where a walk back starts.

    Attributes:
        relevance: ``(T * N, ...)``, relevance of the value where it starts, target-major.
        one_hot: whether one entry of each sample alone has relevance.
        score: ``(T, N)``, what is sent back, or what it was computed from.
    """

    relevance: Tensor
    one_hot: bool
    score: Tensor


class Explained(NamedTuple):
    """What one run of a program gives.

    Attributes:
        relevance: ``(T * N, ...)``, relevance of each explained input by its name in the graph,
            target-major.
        exposed: the same of nodes, by name.
        target: ``(T, N)`` int64, flat indices of the outputs that were explained, or bool
            ``(T, N, ...)``, the entries.
        score: ``(T, N)``, see :class:`Start`.
    """

    relevance: dict[str, Tensor]
    exposed: dict[str, Tensor]
    target: Tensor
    score: Tensor

    def total(self) -> Tensor:
        """``(T * N,)`` float64, the sum of the relevance of all inputs."""
        sums = [one.to(torch.float64).flatten(1).sum(1) for one in self.relevance.values()]
        return torch.stack(sums).sum(0)


# (walk, output (N, ...), target of Explained, findings) -> where the walk back starts.
Begin = Callable[[Walk, Tensor, Tensor, Findings], Start]


def like_for_export(
    model: nn.Module,
    inputs: Inputs,
    output: OutputPath,
    findings: Findings,
    function: str = "attribute",
) -> Inputs:
    """Inputs that the model can be exported for.

    Raises:
        ExportError: it would have to be exported while a CUDA graph is captured.
    """
    # An empty batch cannot be exported with a fixed batch size.
    like = inputs if inputs.samples else inputs.zeros(1)
    if findings.capturing and not cache_of(model).has_graph(model, like, output):
        raise ExportError(
            f"model must have been exported before a CUDA graph is captured: call {function} "
            f"once with {inputs.shapes()} before capturing"
        )
    return like


def run(
    walk: Walk,
    inputs: Inputs,
    chosen: Tensor | None,
    begin: Begin,
    findings: Findings,
    bounds: Bounds | None = None,
    exposed: Collection[str] = (),
    runs_on: torch.device | None = None,
) -> Explained:
    """Run a program forward and back; reads nothing from a device.

    Args:
        walk: the program, ready to run.
        inputs: what the model takes, N at least 1.
        chosen: target as in :class:`Explained`; None for the largest output.
        begin: makes the relevance that is sent back.
        findings: takes the checks of the output.
        bounds: lowest and highest values of a single input, of its shape.
        exposed: names of nodes whose relevance is wanted.
        runs_on: the device whose layouts are used, None for that of the inputs.
    """
    device = runs_on or inputs.device
    output = walk.forward([fast_layout(tensor, device) for tensor in inputs.tensors], bounds)
    scores = output.detach().reshape(inputs.samples, -1)
    finite = torch.isfinite(scores).all(1)
    findings.check(
        finite, lambda: ~finite.all(), partial(_refuse_non_finite, finite, findings.first)
    )
    index = scores.argmax(1)[None] if chosen is None else chosen
    start = begin(walk, output, index, findings)
    del output, scores
    relevance, found = send_back(walk, inputs, start, exposed)
    return Explained(relevance, found, index, start.score)


def send_back(
    walk: Walk, inputs: Inputs, start: Start, exposed: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Send relevance to the inputs of a walk that has run forward.

    Returns:
        The relevance of each explained input and that of the exposed nodes: zeros where none
        arrives.
    """
    graph, samples = walk.program.graph, start.relevance.shape[0]
    arrived, maps = walk.backward(start.relevance, exposed, start.one_hot)
    relevance = {}
    for name, x in zip(graph.explained, inputs.explained, strict=True):
        if name not in arrived:
            arrived[name] = x.new_zeros((samples, *x.shape[1:]))
        relevance[name] = _laid_out_like(x, arrived[name])
    first = inputs.explained[0]
    found = {
        name: maps[name].contiguous()
        if name in maps
        else first.new_zeros((samples, *graph.sized(graph.shape_of(name), inputs.samples)[1:]))
        for name in exposed
    }
    return relevance, found


def start_from_output(output: Tensor, target: Tensor) -> Start:
    """Send the target's entries of an output back.

    Args:
        output: ``(N, ...)``, or what takes its place.
        target: as in :class:`Explained`.
    """
    score = scores_of(output, target)
    if target.dtype == torch.bool:
        entries = torch.where(target, output, 0)
        return Start(entries.flatten(0, 1), False, score)
    size = output[0].numel()
    start = score.new_zeros(*target.shape, size).scatter_(2, target[..., None], score[..., None])
    return Start(start.reshape(-1, *output.shape[1:]), True, score)


def scores_of(output: Tensor, target: Tensor) -> Tensor:
    """The outputs ``(T, N)`` at the target of :class:`Explained`, summed where it is a mask."""
    if target.dtype == torch.bool:
        # Halves have no room for the sum over many positions.
        wide = torch.promote_types(output.dtype, torch.float32)
        return torch.where(target, output, 0).flatten(2).sum(2, dtype=wide)
    return output.reshape(output.shape[0], -1).gather(1, target.t()).t()


def warn_of_non_positive(score: Tensor, findings: Findings) -> None:
    """Warn of the targets ``(T, N)`` whose logit is not positive."""
    findings.check(
        score, lambda: (score <= 0).any(), partial(_warn_of_non_positive, score, findings.first)
    )


@contextmanager
def settings(x: Tensor | Inputs) -> Iterator[None]:
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


def fast_layout(x: Tensor, device: torch.device | None = None) -> Tensor:
    """Images in channels-last, where that is the faster layout of the device, or of that of x."""
    if x.dim() == 4 and x.dtype in _CHANNELS_LAST.get((device or x.device).type, ()):
        return x.detach().contiguous(memory_format=torch.channels_last)
    return x.detach()


def _laid_out_like(x: Tensor, relevance: Tensor) -> Tensor:
    """The strides of ``x`` for each sample."""
    if relevance.shape != x.shape:
        return relevance.contiguous(memory_format=memory_format_of(x))
    result = torch.empty_like(x)
    if relevance.stride() == result.stride():
        return relevance
    return result.copy_(relevance)


def output_shape(graph: Graph, samples: int) -> torch.Size:
    """Shape of the model's output for a batch size.

    Raises:
        ArgumentError: it is not one row for each sample.
    """
    shape = graph.sized(graph.shape_of(graph.output), samples)
    if not shape or shape[0] != samples:
        raise ArgumentError(
            "model must return one row of outputs per sample, but for a batch of "
            f"{samples} it returns shape {list(shape)}"
        )
    return torch.Size((samples, *shape[1:]))


def nodes_of_layers(program: Program, layers: Sequence[str], model: nn.Module) -> dict[str, str]:
    """Module path -> the last node that belongs to it and that relevance goes through.

    Raises:
        ArgumentError: a path names no module, one that runs nothing, or one behind the value
            where relevance starts.
    """
    if not layers:
        return {}
    # What leads to a gate alone has no rule: its relevance is 0.
    reached = {step.node.name for step in program.steps if step.rule is not None}
    before = program.graph.ancestors(program.end)
    last = _last_nodes(program, before - reached) | _last_nodes(program, reached)
    behind = _last_nodes(program, program.graph.nodes.keys() - before)
    for layer in layers:
        if layer in last:
            continue
        if layer in behind:
            raise ArgumentError(
                f"layers must name modules before the one where relevance starts, got {layer!r}"
            )
        raise checks.unknown_layer("layers must name modules", layer, model, last)
    return {layer: last[layer] for layer in layers}


def _last_nodes(program: Program, names: Collection[str]) -> dict[str, str]:
    return {
        path: step.node.name
        for step in program.steps
        if step.node.name in names and step.node.kind == "activation"
        for path in step.node.modules
    }


def empty(program: Program, inputs: Inputs, targets: int, exposed: Collection[str]) -> Explained:
    """What the run of an empty batch gives."""
    graph, x = program.graph, inputs.explained[0]
    found = {name: x.new_zeros((0, *graph.sized(graph.shape_of(name), 0)[1:])) for name in exposed}
    relevance = {
        name: torch.empty_like(tensor)
        for name, tensor in zip(graph.explained, inputs.explained, strict=True)
    }
    none = x.new_zeros((targets, 0))
    return Explained(relevance, found, none.to(torch.int64), none)


def _refuse_non_finite(finite: Tensor, first: int) -> NoReturn:
    samples = _listed([first + sample for sample in (~finite).nonzero()[:, 0].tolist()])
    raise NonFiniteOutputError(
        f"model must return finite outputs, got NaN or infinity for sample(s) {samples}"
    )


def _warn_of_non_positive(score: Tensor, first: int) -> None:
    found = [
        (sample, value)
        for row in score.tolist()
        for sample, value in enumerate(row, first)
        if value <= 0
    ]
    samples = list(dict.fromkeys(sample for sample, _ in found))
    logits = _listed([f"{value:.4g}" for _, value in found])
    warn(
        f"the target's logit is not positive for sample(s) {_listed(samples)} (logit "
        f"{logits}): the map is then the inverse of a positive class's map",
        NonPositiveTargetWarning,
    )


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
