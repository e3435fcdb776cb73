"""Which BatchNorms and zero pads are part of a convolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rapkernels.graph import Graph, Node, Ref, refs

CONVOLUTIONS = {
    "aten.conv1d.default": 1,
    "aten.conv2d.default": 2,
    "aten.conv3d.default": 3,
    "aten.conv1d.padding": 1,
    "aten.conv2d.padding": 2,
    "aten.conv3d.padding": 3,
    "aten.convolution.default": None,
}
BATCH_NORMS = (
    "aten.batch_norm.default",
    "aten._native_batch_norm_legit_no_training.default",
)
PADS = ("aten.pad.default", "aten.constant_pad_nd.default")


@dataclass(frozen=True)
class Fusion:
    """What each convolution takes in.

    Attributes:
        batch_norm: convolution -> the BatchNorm after it.
        padding: convolution -> (low, high) per spatial dimension, the first dimension first, of the
            zero pad before it.
        absorbed: BatchNorm or pad -> the convolution (one of them) that it is part of.
    """

    batch_norm: dict[str, Node] = field(default_factory=dict)
    padding: dict[str, tuple[int, ...]] = field(default_factory=dict)
    absorbed: dict[str, str] = field(default_factory=dict)


def fuse(graph: Graph, fold_batch_norm: bool, parts: Mapping[str, str | None]) -> Fusion:
    """Find the BatchNorms and pads that belong to convolutions.

    A BatchNorm does where it alone reads a convolution's output and its statistics are running
    ones; a constant zero pad does where all that read it are convolutions.

    Args:
        graph: the graph.
        fold_batch_norm: whether BatchNorms are folded.
        parts: activation node -> "conv", "batch_norm" or "pad" if its rule can take part.
    """
    fusion = Fusion()
    convolutions = {
        name
        for name, part in parts.items()
        if part == "conv" and is_convolution(graph, graph.nodes[name])
    }
    for node in graph.nodes.values():
        if parts.get(node.name) == "pad":
            _fuse_pad(graph, node, convolutions, fusion)
        elif fold_batch_norm and node.name in convolutions:
            follower = graph.only_user(node.name)
            if (
                follower is not None
                and parts.get(follower.name) == "batch_norm"
                and _is_foldable(graph, follower, node)
            ):
                fusion.batch_norm[node.name] = follower
                fusion.absorbed[follower.name] = node.name
    return fusion


def is_convolution(graph: Graph, node: Node) -> bool:
    """Whether a node convolves one activation with a weight that does not depend on the input."""
    return (
        node.operation in CONVOLUTIONS
        and not node.arguments.get("transposed", False)
        and graph.activations(node) == (_name(node.arguments["input"]),)
    )


def _name(value: Any) -> str | None:
    return value.name if isinstance(value, Ref) else None


def _is_foldable(graph: Graph, node: Node, convolution: Node) -> bool:
    arguments = node.arguments
    return (
        node.operation in BATCH_NORMS
        and node.index in (None, 0)
        and not arguments.get("training", False)
        and _name(arguments["input"]) == convolution.name
        # The convolution runs first, so a computed parameter would not be there yet.
        and not any(name in graph.nodes for name in refs(batch_norm_operands(node)))
        and arguments["running_mean"] is not None
        and arguments["running_var"] is not None
    )


def batch_norm_operands(node: Node) -> tuple[Any, ...]:
    """(weight, bias, running mean, running variance) of a BatchNorm node."""
    names = ("weight", "bias", "running_mean", "running_var")
    return tuple(node.arguments[name] for name in names)


def _fuse_pad(graph: Graph, node: Node, convolutions: set[str], fusion: Fusion) -> None:
    users = [graph.nodes[name] for name in graph.users.get(node.name, [])]
    spatial = len(node.shape) - 2
    amounts = list(pad_amounts(node))
    if (
        node.name != graph.output
        and users
        and all(
            user.name in convolutions and _name(user.arguments["input"]) == node.name
            for user in users
        )
        and is_zero_pad(node)
        and all(isinstance(amount, int) and amount >= 0 for amount in amounts)
        and not any(amounts[2 * spatial :])
    ):
        padding = _first_dimension_first(amounts, spatial)
        for user in users:
            fusion.padding[user.name] = padding
        fusion.absorbed[node.name] = users[0].name


def is_zero_pad(node: Node) -> bool:
    """Whether a pad node fills with zeros."""
    value = node.arguments.get("value", 0)
    return node.arguments.get("mode", "constant") == "constant" and (value is None or value == 0)


def pad_amounts(node: Node) -> Iterator[Any]:
    """(low, high) per dimension, the last dimension first, as in ``torch.nn.functional.pad``."""
    yield from node.arguments.get("pad", node.arguments.get("padding", ()))


def _first_dimension_first(amounts: list[int], spatial: int) -> tuple[int, ...]:
    padded = (amounts + [0] * (2 * spatial))[: 2 * spatial]
    pairs = [padded[2 * i : 2 * i + 2] for i in reversed(range(spatial))]
    return tuple(edge for pair in pairs for edge in pair)
