"""The table: which rule each operation of a graph gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.fusion import BATCH_NORMS, CONVOLUTIONS
from rapkernels.graph import Graph, Node
from rapkernels.logits import SOFTMAX
from rapkernels.rules.add import Affine, choose_sum
from rapkernels.rules.attnlrp import Softmax
from rapkernels.rules.base import Rule
from rapkernels.rules.batch_norm import BatchNorm
from rapkernels.rules.conv import Convolution
from rapkernels.rules.elementwise import ACTIVATIONS, Activation, Cast, Copy, Identity
from rapkernels.rules.extremes import Extremum, choose_larger
from rapkernels.rules.linear import LINEAR_OPERATIONS, Linear
from rapkernels.rules.mixing import Attention, WeightedSum
from rapkernels.rules.normalisation import NORMALISATIONS, Normalisation
from rapkernels.rules.pool import (
    AdaptiveAveragePool,
    AdaptiveMaxPool,
    AveragePool,
    MaxPool,
    Reduction,
)
from rapkernels.rules.product import choose_product
from rapkernels.rules.resampling import Bicubic, Resampling, Sampling
from rapkernels.rules.structure import (
    BorderPad,
    Concatenation,
    Pad,
    Part,
    Permute,
    Reshape,
    Structure,
)

Choice = type[Rule] | Callable[[Graph, Node], type[Rule]]


def _aten(names: str) -> list[str]:
    """Full names of operations; "name" is "aten.name.default"."""
    return [f"aten.{name}" + ("" if "." in name else ".default") for name in names.split()]


def choose_linear(graph: Graph, node: Node) -> type[Rule]:
    """A layer where the second factor is a constant matrix, else a sum with weights."""
    read, arguments = graph.activations(node), node.arguments
    if len(read) > 1:
        return WeightedSum
    if node.operation not in ("aten.matmul.default", "aten.mm.default"):
        return Linear
    first = arguments["self"]
    second = arguments["other" if "other" in arguments else "mat2"]
    is_layer = graph.is_activation(first.name) and len(graph.shape_of(second.name)) == 2
    return Linear if is_layer else WeightedSum


_BUILT_IN: dict[str, Choice] = {
    **dict.fromkeys(CONVOLUTIONS, Convolution),
    **dict.fromkeys(LINEAR_OPERATIONS, choose_linear),
    **dict.fromkeys(BATCH_NORMS, BatchNorm),
    **dict.fromkeys(ACTIVATIONS, Activation),
    **dict.fromkeys(_aten("max_pool1d max_pool2d max_pool3d"), MaxPool),
    **dict.fromkeys(_aten("max_pool2d_with_indices max_pool3d_with_indices"), MaxPool),
    **dict.fromkeys(_aten("max_pool1d_with_indices"), MaxPool),
    **dict.fromkeys(_aten("avg_pool1d avg_pool2d avg_pool3d"), AveragePool),
    **dict.fromkeys(
        _aten("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"), AdaptiveMaxPool
    ),
    **dict.fromkeys(
        _aten("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"), AdaptiveAveragePool
    ),
    **dict.fromkeys(_aten("_adaptive_avg_pool2d _adaptive_avg_pool3d"), AdaptiveAveragePool),
    **dict.fromkeys(_aten("mean.dim sum.dim_IntList"), Reduction),
    **dict.fromkeys(_aten("amax amin max.dim min.dim"), Extremum),
    **dict.fromkeys(_aten("maximum minimum max.other min.other fmax fmin"), choose_larger),
    **dict.fromkeys(_aten("add.Tensor sub.Tensor"), choose_sum),
    **dict.fromkeys(_aten("add.Scalar sub.Scalar rsub.Scalar rsub.Tensor neg"), Affine),
    **dict.fromkeys(_aten("mul.Tensor div.Tensor"), choose_product),
    **dict.fromkeys(_aten("mul.Scalar div.Scalar"), Affine),
    **dict.fromkeys(NORMALISATIONS, Normalisation),
    **dict.fromkeys(_aten("scaled_dot_product_attention"), Attention),
    **dict.fromkeys(_aten("bmm einsum"), WeightedSum),
    **dict.fromkeys(SOFTMAX, Softmax),
    **dict.fromkeys(
        _aten("upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec"), Resampling
    ),
    **dict.fromkeys(
        _aten("upsample_linear1d.vec upsample_bilinear2d.vec upsample_trilinear3d.vec"), Resampling
    ),
    **dict.fromkeys(
        _aten("_upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec"), Resampling
    ),
    **dict.fromkeys(_aten("_upsample_nearest_exact3d.vec _upsample_bilinear2d_aa.vec"), Resampling),
    **dict.fromkeys(_aten("upsample_bicubic2d.vec"), Bicubic),
    **dict.fromkeys(_aten("grid_sampler"), Sampling),
    **dict.fromkeys(_aten("dropout feature_dropout alpha_dropout feature_alpha_dropout"), Copy),
    **dict.fromkeys(_aten("clone contiguous alias detach lift_fresh_copy"), Copy),
    **dict.fromkeys(_aten("to.dtype to.dtype_layout to.device to.other type_as _to_copy"), Cast),
    **dict.fromkeys(_aten("view _unsafe_view reshape flatten.using_ints unflatten.int"), Reshape),
    **dict.fromkeys(_aten("squeeze squeeze.dim squeeze.dims unsqueeze"), Reshape),
    **dict.fromkeys(_aten("permute transpose.int t numpy_T swapaxes"), Permute),
    **dict.fromkeys(_aten("slice.Tensor select.int narrow chunk split.Tensor"), Part),
    **dict.fromkeys(_aten("split_with_sizes split.sizes unbind.int tensor_split.sections"), Part),
    **dict.fromkeys(_aten("cat concat"), Concatenation),
    **dict.fromkeys(_aten("pad constant_pad_nd"), Pad),
    **dict.fromkeys(
        _aten("expand expand_as repeat tile stack flip roll movedim.int mT"), Structure
    ),
    **dict.fromkeys(_aten("reflection_pad1d reflection_pad2d reflection_pad3d"), BorderPad),
    **dict.fromkeys(_aten("replication_pad1d replication_pad2d replication_pad3d"), BorderPad),
    **dict.fromkeys(_aten("pixel_shuffle pixel_unshuffle channel_shuffle"), Structure),
    **dict.fromkeys(_aten("rot90 diagonal unfold im2col"), Structure),
    **dict.fromkeys(_aten("index.Tensor index_select gather take_along_dim"), Structure),
    **dict.fromkeys(_aten("masked_fill.Scalar masked_fill.Tensor tril triu"), Structure),
    **dict.fromkeys(_aten("where.self where.ScalarOther where.ScalarSelf"), Structure),
    **dict.fromkeys(_aten("repeat_interleave.self_int broadcast_to"), Structure),
}
NAMED: dict[str, type[Rule]] = {"identity": Identity, "structure": Structure}

_registered: dict[str, Choice] = {}
_lock = threading.Lock()
_version = 0


def register_rule(operation: str, rule: str | type[Rule]) -> None:
    """Give an operation of the graph a rule, for all models from now on.

    Args:
        operation: its name as ``plan`` and :class:`~rapkernels.errors.UnsupportedOperationError`
            show it, such as "aten.sin.default".
        rule: "identity" (element-wise: relevance passes), "structure" (moves, copies or leaves out
            entries: relevance moves back), or a subclass of :class:`Rule`. A rule that is there
            already is replaced; :func:`unregister_rule` brings it back.

    Raises:
        ArgumentTypeError: ``operation`` is not a string or ``rule`` is neither a string nor a
            subclass of Rule.
        ArgumentError: ``operation`` is not the full name of an operation, or ``rule`` is not a
            known name.
    """
    if not isinstance(operation, str):
        raise ArgumentTypeError(
            f'operation must be a string such as "aten.sin.default", got {type(operation).__name__}'
        )
    if operation.count(".") < 2 or "" in operation.split("."):
        raise ArgumentError(
            "operation must be a full name (namespace, operation and overload) such as "
            f'"aten.sin.default", got {operation!r}'
        )
    _change(operation, named_rule("rule", rule))


def named_rule(argument: str, rule: Any) -> type[Rule]:
    """The class of a rule that is given by its name or as the class itself.

    Raises:
        ArgumentTypeError, ArgumentError: it is neither; the message names ``argument``.
    """
    if isinstance(rule, str):
        if rule not in NAMED:
            names = " or ".join(f'"{name}"' for name in NAMED)
            raise ArgumentError(f"{argument} must be {names} or a subclass of Rule, got {rule!r}")
        return NAMED[rule]
    if isinstance(rule, type) and issubclass(rule, Rule):
        return rule
    raise ArgumentTypeError(
        f"{argument} must be a name or a subclass of Rule, got {type(rule).__name__}"
    )


def unregister_rule(operation: str) -> None:
    """Take back what :func:`register_rule` did for an operation.

    Raises:
        ArgumentError: no rule was registered for it.
    """
    if operation not in _registered:
        raise ArgumentError(f"operation must have a registered rule, got {operation!r}")
    _change(operation, None)


def _change(operation: str, choice: Choice | None) -> None:
    global _version
    with _lock:
        if choice is None:
            del _registered[operation]
        else:
            _registered[operation] = choice
        _version += 1


def table_version() -> int:
    """Changes whenever the table does."""
    return _version


def rule_class(graph: Graph, node: Node) -> type[Rule] | None:
    """The class of rules that a node's operation gets, None if it has none."""
    choice = _registered.get(node.operation, _BUILT_IN.get(node.operation))
    if choice is None or isinstance(choice, type):
        return choice
    return choice(graph, node)
