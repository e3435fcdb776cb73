"""Layer-wise Relevance Propagation: the rules of its layers, as a composite says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.composites import (
    Composite,
    Contributions,
    Family,
    Flat,
    LayerRule,
    WSquare,
    ZBox,
)
from rapkernels.fusion import CONVOLUTIONS
from rapkernels.graph import Graph
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, Rule, Site
from rapkernels.rules.conv import Convolution
from rapkernels.rules.input_layer import bounds_of
from rapkernels.rules.linear import Linear


class LrpConvolution(Convolution):
    """A convolution with the rule that the composite has for it."""

    def __init__(self, site: Site) -> None:
        self._rule = _rule_of(site)
        self.name = self._rule.name
        self.keeps_z = isinstance(self._rule, Contributions)
        super().__init__(site)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, z, bias = self.kept(ctx)
        rule = self._rule
        if isinstance(rule, ZBox):
            low, high = _bounds(rule, ctx, x)
            return ctx.settle(
                *ctx.ops.relprop_zbox_conv(
                    x, weight, low, high, *relevance, *self.geometry, rule.stabilizer
                )
            )
        if isinstance(rule, WSquare | Flat):
            weight, bias = _replaced(rule, weight, bias)
            return ctx.settle(
                *ctx.ops.relprop_conv(
                    torch.ones_like(x),
                    weight,
                    None,
                    *relevance,
                    *self.geometry,
                    "epsilon",
                    True,
                    bias,
                    [rule.stabilizer],
                )
            )
        assert isinstance(rule, Contributions)
        return ctx.settle(
            *ctx.ops.relprop_conv(
                x,
                weight,
                z,
                *relevance,
                *self.geometry,
                rule.operation,
                self.nonnegative,
                bias if rule.bias else None,
                rule.parameters,
                self.precision,
            )
        )


class LrpLinear(Linear):
    """A linear layer with the rule that the composite has for it."""

    def __init__(self, site: Site) -> None:
        self._rule = _rule_of(site)
        self.name = self._rule.name
        rule = self._rule
        self.keeps_z = isinstance(rule, Contributions)
        self.keeps_sums = isinstance(rule, Contributions) and rule.operation != "epsilon"
        super().__init__(site)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, z, bias, sums = ctx.saved
        rule = self._rule
        if isinstance(rule, ZBox):
            low, high = _bounds(rule, ctx, x)
            return ctx.settle(
                *ctx.ops.relprop_zbox_linear(x, weight, low, high, *relevance, rule.stabilizer)
            )
        if isinstance(rule, WSquare | Flat):
            weight, bias = _replaced(rule, weight, bias)
            return ctx.settle(
                *ctx.ops.relprop_linear(
                    torch.ones_like(x),
                    weight,
                    *relevance,
                    "epsilon",
                    True,
                    bias,
                    [rule.stabilizer],
                )
            )
        assert isinstance(rule, Contributions)
        return ctx.settle(
            *ctx.ops.relprop_linear(
                x,
                weight,
                *relevance,
                rule.operation,
                self.nonnegative,
                bias if rule.bias else None,
                rule.parameters,
                z,
                *(sums or ()),
            )
        )


def _rule_of(site: Site) -> LayerRule:
    composite: Composite = site.settings
    family: Family = "conv" if site.node.operation in CONVOLUTIONS else "linear"
    return composite.rule(site.node, family, "input" if site.is_first else site.role)


def _replaced(
    rule: WSquare | Flat, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What takes the place of weight and bias, for inputs of ones."""
    if isinstance(rule, Flat):
        return torch.ones_like(weight), None
    return weight.square(), None if bias is None or not rule.bias else bias.square()


def _bounds(rule: ZBox, ctx: Context, x: Tensor) -> tuple[Tensor, Tensor]:
    if rule.low is None or rule.high is None:
        return bounds_of(ctx, x)
    return x.new_full((), rule.low), x.new_full((), rule.high)


_RULES: dict[type[Rule], type[Rule]] = {Convolution: LrpConvolution, Linear: LrpLinear}


def choose_lrp(operation: type[Rule], site: Site) -> type[Rule]:  # noqa: ARG001
    """The composite's rule of convolutions and linear layers."""
    return _RULES.get(operation, operation)


def check_composite(graph: Graph, families: Mapping[str, str], composite: Composite) -> None:
    """Raise ArgumentError where a composite names layers that a graph does not have."""
    composite.check(graph, families)
