"""Which dimension of each value holds the channels: the feature vector of a position."""

from __future__ import annotations

from collections.abc import Mapping

from rapkernels.graph import Graph, Node

_FLATTENING = {"aten.flatten.using_ints", "aten.view.default", "aten.reshape.default"}
_READS_PLACES = {"aten.grid_sampler.default"}


def channel_dims(graph: Graph, families: Mapping[str, str]) -> dict[str, int]:
    """Name of a value -> the dimension of its channels, for the values where it is known.

    It is dimension 1 of the input, of convolutions and of everything with two dimensions, the last
    dimension of linear layers, and follows permutations; operations that keep the number of
    dimensions keep it, others lose it.

    Args:
        graph: the graph.
        families: activation node -> family of its rule.
    """
    known = {graph.input: 1}
    for node in graph.nodes.values():
        if node.kind != "activation":
            continue
        dim = _channel_dim(graph, node, families[node.name], known)
        if dim is not None:
            known[node.name] = dim
    return known


def _channel_dim(graph: Graph, node: Node, family: str, known: Mapping[str, int]) -> int | None:
    rank = len(node.shape)
    if rank == 2 or family == "conv":
        return 1
    if family == "linear":
        return rank - 1
    sources = [known.get(name) for name in graph.activations(node)]
    if node.operation in _READS_PLACES:
        del sources[1:]
    if None in sources or len(set(sources)) != 1:
        return None
    source = sources[0]
    assert source is not None
    before = len(graph.shape_of(graph.activations(node)[0]))
    if node.operation == "aten.permute.default":
        return [int(dim) % before for dim in node.arguments["dims"]].index(source)
    if node.operation == "aten.transpose.int":
        first, second = (int(node.arguments[name]) % before for name in ("dim0", "dim1"))
        return {first: second, second: first}.get(source, source)
    if node.operation in _FLATTENING:
        # The spatial positions of (N, C, *size) as one dimension.
        kept = graph.shape_of(graph.activations(node)[0])[:2] == node.shape[:2]
        return 1 if source == 1 and kept else None
    return source if before == rank else None
