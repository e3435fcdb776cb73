"""Prediction from activation patterns alone (APOP), of Sharing Ratio Decomposition."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rapkernels import calls, checks
from rapkernels.cache import cache_of
from rapkernels.errors import UnsupportedNode, UnsupportedOperationError
from rapkernels.findings import Findings
from rapkernels.graph import Graph, Node, refs
from rapkernels.inputs import Inputs
from rapkernels.outputs import Output, read_output
from rapkernels.rules.attnlrp import Softmax
from rapkernels.rules.base import Rule
from rapkernels.rules.choices import Classes
from rapkernels.rules.classes import carried, reached, rule_classes
from rapkernels.rules.mixing import WeightedSum
from rapkernels.rules.normalisation import Normalisation, normalised_like
from rapkernels.rules.pool import AdaptiveMaxPool, MaxPool

_MAX_POOL: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    3: functional.max_pool1d_with_indices,
    4: functional.max_pool2d_with_indices,
    5: functional.max_pool3d_with_indices,
}
_ADAPTIVE_MAX_POOL: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    3: functional.adaptive_max_pool1d_with_indices,
    4: functional.adaptive_max_pool2d_with_indices,
    5: functional.adaptive_max_pool3d_with_indices,
}


def activation_pattern_prediction(
    model: nn.Module, x: Tensor, constant: float = 1.0, output: Output = None
) -> Tensor:
    """Predict from the activation pattern of an input, without its values.

    Which neurons are active and which entries win in max pools is recorded on ``x``; then an input
    of one constant value runs through the same network with these patterns in the place of its
    activation functions and max pools (Han et al., "Respect the model", ICLR 2024, Algorithm 1).
    The pattern of an activation f is the slope ``(f(z) - f(0)) / z``, which is 0 or 1 for ReLU (0
    where z is 0); biases, ``f(0)`` and BatchNorms stay. What is a constant to relevance is part of
    the pattern as well: gates, the weights of attention, the statistics of normalisations are those
    of ``x``. That the input is all ones, and the pattern of anything but ReLU and max pools, are
    inferred: the algorithm itself could not be read.

    Args:
        model: the module, in eval mode. It takes one tensor.
        x: ``(N, ...)``, what the model takes, finite.
        constant: the value of the input that runs through the pattern.
        output: which tensor of what the model returns is wanted, see
            :class:`~rapkernels.explainer.Explainer`.

    Returns:
        What the model returns for it: the logits, ``(N, ...)``, detached.

    Raises:
        ArgumentError, ArgumentTypeError: an argument cannot be used; the message says why.
        TrainingModeError: BatchNorm or Dropout modules are in train mode.
        ExportError: ``torch.export`` cannot export the model, or not while a CUDA graph is
            captured.
        UnsupportedOperationError: the model has operations that no rule is known for.
    """
    checks.check_model(model)
    checks.check_eval_mode(model)
    checks.check_input(model, x)
    checks.check_finite_number("constant", constant)
    path = read_output(output)
    findings = Findings(x.device)
    checks.check_finite(x, findings)
    with calls.settings(x):
        inputs, function = Inputs.of(model, x), "activation_pattern_prediction"
        like = calls.like_for_export(model, inputs, path, findings, function)
        graph = cache_of(model).graph(model, like, path)
        classes = rule_classes(graph)
        signals = reached(graph, graph.output, classes)
        _check_supported(graph, classes, signals)
        if x.shape[0] == 0:
            return x.new_zeros(calls.output_shape(graph, 0))
        known: dict[str, Any] = graph.values(model)
        (only,) = graph.inputs
        actual = {**known, only: x.detach()}
        probe = {**known, only: torch.full_like(x, constant)}
        for node in graph.nodes.values():
            actual[node.name] = probe[node.name] = node.run(actual)
            if node.name in signals:
                probe[node.name] = _probed(graph, node, classes[node.name], actual, probe)
        findings.settle()
        predicted: Tensor = probe[graph.output]
        return predicted


def _probed(
    graph: Graph,
    node: Node,
    cls: type[Rule] | None,
    actual: Mapping[str, Any],
    probe: Mapping[str, Any],
) -> Any:
    """The node's value for the constant, with the pattern of the input itself."""
    sources = carried(graph, node.name, cls)
    seen, source = actual[sources[0]], probe[sources[0]]
    if cls in (MaxPool, AdaptiveMaxPool):
        winners = _winners(node, seen, cls is AdaptiveMaxPool)
        return source.flatten(2).gather(2, winners.flatten(2)).view(winners.shape)
    if cls is Normalisation:
        return normalised_like(node, actual, seen, source)
    if cls is not None and cls.family == "activation":
        return _sloped(node, actual, seen, source)
    return node.run({**actual, **{name: probe[name] for name in sources}})


def _sloped(node: Node, actual: Mapping[str, Any], seen: Tensor, source: Tensor) -> Tensor:
    """An activation function by its slope from 0 to what was seen."""
    read = list(refs((node.args, node.kwargs)))
    # Near 0 a rise from f(0) other than 0 cancels; what has weights (PReLU) has f(0) = 0.
    wide = torch.float64 if len(read) == 1 else seen.dtype
    z = seen.to(wide)
    offset = node.run({**actual, read[0]: torch.zeros_like(z)})
    rise = node.run({**actual, read[0]: z}) - offset
    slope = torch.where(z != 0, rise / z, 0)
    found: Tensor = offset + source * slope
    return found.to(seen.dtype)


def _winners(node: Node, x: Tensor, adaptive: bool) -> Tensor:
    """Flat indices of the entries that win in a max pool."""
    arguments = node.arguments
    if adaptive:
        return _ADAPTIVE_MAX_POOL[x.dim()](x, arguments["output_size"])[1]
    return _MAX_POOL[x.dim()](
        x,
        arguments["kernel_size"],
        arguments["stride"] or None,
        arguments["padding"],
        arguments["dilation"],
        arguments["ceil_mode"],
    )[1]


def _check_supported(graph: Graph, classes: Classes, signals: Collection[str]) -> None:
    unknown = [
        UnsupportedNode(node.name, node.operation, node.module, reason)
        for node in graph.nodes.values()
        if node.name in signals and (reason := _refusal(graph, node, classes[node.name]))
    ]
    if unknown:
        raise UnsupportedOperationError(unknown)


def _refusal(graph: Graph, node: Node, cls: type[Rule] | None) -> str:
    """Why a node has no pattern; empty where it has one."""
    if cls is None:
        return "no rule for this operation"
    if cls is Softmax:
        return "a softmax that is no attention has no activation pattern"
    if cls is WeightedSum and len(cls.carried(graph, node)) > 1:
        return "it multiplies values of which neither is the weights of attention"
    return ""
