"""Element-wise operations that relevance passes through unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph, Node
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Rule, Site


class Identity(Rule):
    """Relevance passes unchanged: the operation is element-wise in the one activation it reads."""

    name = "identity"
    family: ClassVar[str] = "activation"
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if len(self.carried(site.graph, site.node)) != 1:
            raise NoRuleError("the rule identity needs an operation of one activation")
        if site.graph.shape_of(site.inputs[0]) != site.node.shape:
            raise NoRuleError("the rule identity needs an output shaped like the input")

    @override
    def backward(
        self, ctx: Context, relevance: Relevance
    ) -> Relevance | Sequence[Relevance | None]:
        return relevance


class Activation(Identity):
    """ReLU and its like; overwrites its input where nobody else needs that."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.fresh = True
        self.again = "input" if site.node.operation in _CHEAP else None
        in_place = _IN_PLACE.get(site.node.operation)
        self._in_place = in_place if site.owns(site.inputs[0]) else None

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        if self._in_place is None:
            return super().forward(ctx, *args, **kwargs)
        result: Tensor = self._in_place(*args, **kwargs)
        return result


class Copy(Identity):
    """Copies, aliases and changes of memory layout; dropout in eval mode is one of them."""

    family: ClassVar[str] = "structure"
    again = "input"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.node.arguments.get("train", False):
            raise NoRuleError("dropout is active (training=True)")
        self.fresh = site.owns(site.inputs[0])

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        # Values are written once, so that nobody needs a copy.
        result: Tensor = args[0]
        return result


class Cast(Identity):
    """A change of floating-point type: relevance goes back in the type of the input."""

    name = "cast"
    family: ClassVar[str] = "structure"

    @classmethod
    @override
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        # Another activation may say which type is wanted.
        return graph.activations(node)[:1]

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        ctx.save(args[0].dtype)
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> list[Relevance | None]:
        others = len(self.site.inputs) - 1
        return [cast(ctx, relevance, ctx.saved[0]), *[None] * others]


def cast(ctx: Context, relevance: Relevance, dtype: torch.dtype) -> Relevance:
    """Relevance in another floating-point type."""
    if relevance.values.dtype == dtype:
        return relevance
    return Relevance(ctx.materialise(relevance).to(dtype))


_IN_PLACE = {
    f"aten.{name}.default": getattr(torch.ops.aten, f"{name}_").default
    for name in (
        *("relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "silu", "mish"),
        *("hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "threshold"),
    )
}
# A comparison or two for an element, and no more than a product.
_CHEAP = frozenset(
    f"aten.{name}.default"
    for name in ("relu", "relu6", "hardtanh", "leaky_relu", "hardswish", "hardsigmoid", "threshold")
)
_OTHERS = (
    *("prelu", "softplus", "softshrink", "hardshrink", "log_sigmoid", "rrelu"),
    *("clamp", "clamp_min", "clamp_max", "abs", "square", "exp", "expm1", "log", "log1p"),
    *("sqrt", "erf", "atan", "asinh", "special_expit"),
)
ACTIVATIONS = (
    *_IN_PLACE,
    *(f"aten.{name}.default" for name in _OTHERS),
    "aten.pow.Tensor_Scalar",
)
