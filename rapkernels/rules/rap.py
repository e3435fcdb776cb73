"""Relative Attributing Propagation: the rules of its layers."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from rapkernels.author import relprop_signed_author
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, Rule, Site
from rapkernels.rules.conv import Convolution
from rapkernels.rules.input_layer import ZBoxConvolution, ZBoxLinear
from rapkernels.rules.linear import Linear
from rapkernels.variants import Variant

Relprop = tuple[Tensor, Tensor, Tensor, Tensor]


class RapConvolution(Convolution):
    """The uniformly shifted contributions of Eqs. 7-9 of the RAP paper; the bias plays no part."""

    ignores_scale = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._variant: Variant = site.settings
        self.name = self._variant.conv

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, z, _ = self.kept(ctx)
        signed = self._variant.split_signed and not self.nonnegative

        def propagate(x: Tensor) -> Relprop:
            result: Relprop = ctx.ops.relprop_conv(
                x,
                weight,
                None if signed else z,
                *relevance,
                *self.geometry,
                self.name,
                signed or self.nonnegative,
                precision=self.precision,
            )
            return result

        if signed:
            return ctx.settle(*relprop_signed_author(propagate, x, ctx.ops.merge))
        return ctx.settle(*propagate(x))


class RapLinear(Linear):
    """The uniformly shifted contributions of Eqs. 7-9 of the RAP paper; the bias plays no part."""

    keeps_z = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._variant: Variant = site.settings
        self.name = self._variant.linear
        self._signed = self._variant.split_signed and not self.nonnegative
        self.keeps_sums = not self._signed

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, z, _, sums = ctx.saved
        positive, negative = sums or (None, None)

        def propagate(x: Tensor) -> Relprop:
            result: Relprop = ctx.ops.relprop_linear(
                x,
                weight,
                *relevance,
                self._variant.linear,
                self._signed or self.nonnegative,
                z=None if self._signed else z,
                positive=positive,
                negative=negative,
            )
            return result

        if self._signed:
            return ctx.settle(*relprop_signed_author(propagate, x, ctx.ops.merge))
        return ctx.settle(*propagate(x))


class FirstLinear(RapLinear):
    """The first step, Eqs. 5-6: relevance is shared by absolute influence.

    The paper starts from one output of each sample. Where relevance starts at several, each is
    shared by the same equation; the authors' code takes the rule of inner layers there.
    """

    keeps_z = False

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.keeps_sums = False
        self.name = f"first_{self._variant.first_step}"

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weight, _, bias, _ = ctx.saved
        if ctx.one_hot:
            # One entry of each sample; on the way from the output it has been moved, not mixed.
            start = ctx.materialise(relevance)
            target = start.abs().argmax(1)
            score = start.gather(1, target[:, None])[:, 0]
            rule = self._variant.first_step
            return ctx.settle(*ctx.ops.relprop_first_linear(x, weight, bias, target, score, rule))
        if self._variant.first_step == "author":
            return super().backward(ctx, relevance)
        return ctx.settle(*ctx.ops.relprop_linear(x, weight, *relevance, "absolute"))


_INNER: dict[type[Rule], type[Rule]] = {Convolution: RapConvolution, Linear: RapLinear}
_INPUT: dict[type[Rule], type[Rule]] = {Convolution: ZBoxConvolution, Linear: ZBoxLinear}


def choose_rap(operation: type[Rule], site: Site) -> type[Rule]:
    """The rule of the layer's role; the first step wins where a layer is first and last."""
    if site.role == "output" and operation is Linear:
        return FirstLinear
    rules = _INPUT if site.role == "input" else _INNER
    return rules.get(operation, operation)
