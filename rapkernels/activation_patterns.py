"""Prediction from activation patterns alone (APOP), of Sharing Ratio Decomposition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rapkernels import calls, checks
from rapkernels.cache import cache_of
from rapkernels.errors import UnsupportedNode, UnsupportedOperationError
from rapkernels.findings import Findings
from rapkernels.graph import Graph, Node
from rapkernels.rules.pool import AdaptiveMaxPool, MaxPool
from rapkernels.rules.registry import rule_class

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


def activation_pattern_prediction(model: nn.Module, x: Tensor, constant: float = 1.0) -> Tensor:
    """Predict from the activation pattern of an input, without its values.

    Which neurons are active and which entries win in max pools is recorded on ``x``; then an input
    of one constant value runs through the same network with these patterns in the place of its
    activation functions and max pools (Han et al., "Respect the model", ICLR 2024, Algorithm 1).
    The pattern of an activation f is the factor ``f(z) / z``, which is 0 or 1 for ReLU; biases and
    BatchNorms stay. That the input is all ones, and the form of the pattern of activations other
    than ReLU, are inferred: the algorithm itself could not be read.

    Args:
        model: the module, in eval mode. It takes one tensor and returns one.
        x: ``(N, ...)``, what the model takes, finite.
        constant: the value of the input that runs through the pattern.

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
    findings = Findings(x.device)
    checks.check_finite(x, findings)
    with calls.settings(x):
        like = calls.like_for_export(model, x, findings, "activation_pattern_prediction")
        graph = cache_of(model).graph(model, like)
        _check_supported(graph)
        if x.shape[0] == 0:
            return x.new_zeros(calls.output_shape(graph, 0))
        known: dict[str, Any] = graph.values(model)
        actual = {**known, graph.input: x.detach()}
        probe = {**known, graph.input: torch.full_like(x, constant)}
        for node in graph.nodes.values():
            if node.kind != "activation":
                actual[node.name] = probe[node.name] = node.run(actual)
                continue
            actual[node.name], probe[node.name] = _step(graph, node, actual, probe)
        findings.settle()
        output: Tensor = probe[graph.output]
        return output


def _step(
    graph: Graph, node: Node, actual: Mapping[str, Any], probe: Mapping[str, Any]
) -> tuple[Any, Any]:
    """The node's value for the input itself and for the constant."""
    cls = rule_class(graph, node)
    assert cls is not None
    source = graph.activations(node)[0]
    if cls in (MaxPool, AdaptiveMaxPool):
        value, winners = _pool(node, actual[source], cls is AdaptiveMaxPool)
        chosen = probe[source].flatten(2).gather(2, winners.flatten(2))
        return value, chosen.view(winners.shape)
    value = node.run(actual)
    if cls.family == "activation":
        before: Tensor = actual[source]
        pattern = torch.where(before != 0, value / before, torch.zeros_like(before))
        return value, probe[source] * pattern
    return value, node.run(probe)


def _pool(node: Node, x: Tensor, adaptive: bool) -> tuple[Tensor, Tensor]:
    arguments = node.arguments
    if adaptive:
        return _ADAPTIVE_MAX_POOL[x.dim()](x, arguments["output_size"])
    return _MAX_POOL[x.dim()](
        x,
        arguments["kernel_size"],
        arguments["stride"] or None,
        arguments["padding"],
        arguments["dilation"],
        arguments["ceil_mode"],
    )


def _check_supported(graph: Graph) -> None:
    unknown = [
        UnsupportedNode(node.name, node.operation, node.module, "no rule for this operation")
        for node in graph.nodes.values()
        if node.kind == "activation" and rule_class(graph, node) is None
    ]
    if unknown:
        raise UnsupportedOperationError(unknown)
