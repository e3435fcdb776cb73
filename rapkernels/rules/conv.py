"""Convolutions, with the BatchNorm after and the zero pad before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from rapkernels import host
from rapkernels.fusion import CONVOLUTIONS, batch_norm_operands, is_convolution
from rapkernels.layouts import memory_format_of
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.workspace import empty_like

_CONVOLVE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


class Convolution(Rule):
    """How a convolution runs; each method's own class hands relevance back.

    Attributes:
        keeps_z: whether the backward needs the convolution without bias.
        ignores_scale: whether a positive factor of an output channel's weights leaves the relevance
            of the inputs as it is, as in every rule that divides messages by their sum alone.
        geometry: stride, (low, high) padding for each spatial dimension with that of the pad
            before, dilation and groups, as the ops take them.
    """

    keeps_z: bool = True
    ignores_scale: ClassVar[bool] = False

    family: ClassVar[str] = "conv"
    fuses = "conv"
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        arguments = site.node.arguments
        if arguments.get("transposed", False):
            raise NoRuleError("transposed convolutions have no rule")
        if not is_convolution(site.graph, site.node):
            raise NoRuleError("the weight or bias of the convolution depends on the input")
        dimensions = CONVOLUTIONS[site.node.operation] or len(site.node.shape) - 2
        if len(site.node.shape) != dimensions + 2:
            raise NoRuleError("the convolution's input has no batch dimension")
        self.dimensions = dimensions
        stride = _per_dimension(arguments["stride"], dimensions)
        dilation = _per_dimension(arguments["dilation"], dimensions)
        groups = int(arguments["groups"])
        padding = _padding_pairs(site, dilation)
        self.geometry = stride, padding, dilation, groups
        low, high = padding[::2], padding[1::2]
        self._pad: list[int] = []
        if low != high:
            last_first = zip(low[::-1], high[::-1], strict=True)
            self._pad, low = [edge for pair in last_first for edge in pair], [0] * dimensions
        self._convolve = _CONVOLVE[dimensions]
        self._how = stride, low, dilation, groups
        self.nonnegative = site.inputs[0] in site.nonnegative
        self.precision = site.method.precision
        self.again = "saved" if self.keeps_z else None
        self.batch_norm = site.fusion.batch_norm.get(site.node.name)
        self.fresh = (
            not self.keeps_z or self.batch_norm is not None or arguments["bias"] is not None
        )
        if self.batch_norm is not None:
            self.operands = batch_norm_operands(self.batch_norm)

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        x, weight, bias = _tensors(*args, **kwargs)
        scale = self._batch_norm_scale(ctx)
        bias = _folded_bias(ctx, bias, scale, x.dtype)
        # Weights are folded for both ways, where sums are scaled in the pass that adds the bias.
        after = scale if self.keeps_z and self.ignores_scale and _is_factor(scale, x) else None
        into = scale if after is None else None
        folded = _folded_weight(weight, into, x)
        if not self.keeps_z:
            ctx.save(x, weight, into, None, bias, (None, None))
            return self._run(x, folded, bias)
        affine = self._per_channel(after), self._per_channel(bias)
        ctx.save(x, weight, into, self._run(x, folded, None), bias, affine)
        return self.remake(ctx)

    @override
    def remake(self, ctx: Context) -> Tensor:
        z: Tensor = ctx.saved[3]
        scale, shift = ctx.saved[5]
        if shift is None:
            return z
        if scale is None:
            return torch.add(z, shift, out=empty_like(z))
        return torch.addcmul(shift, z, scale, out=empty_like(z))

    def _per_channel(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values.view(-1, *[1] * self.dimensions)

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._pad:
            x = functional.pad(x, self._pad)
        return self._convolve(x, _laid_out(weight, x), bias, *self._how)

    def kept(self, ctx: Context) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Input, weight, z where the rule keeps it, and folded bias.

        The weight and z are with the scale of the BatchNorm, unless the rule ignores it.
        """
        x, weight, scale, z, bias, _ = ctx.saved
        return x, _folded_weight(weight, scale, x), z, bias

    def _batch_norm_scale(self, ctx: Context) -> Tensor | None:
        """The factor gamma / sqrt(variance + eps), in float32 for the half types."""
        if self.batch_norm is None:
            return None
        gamma, _, _, variance = ctx.operands
        if variance.dtype in (torch.float16, torch.bfloat16):
            variance = variance.float()
        scale = torch.rsqrt(variance + self.batch_norm.arguments["eps"])
        return scale if gamma is None else gamma * scale


def _is_factor(scale: Tensor | None, x: Tensor) -> bool:
    """Whether a scale may be left out of the weights.

    Not where its sign is not known without waiting for a device, nor in a narrow type, which rounds
    what is scaled afterwards once more.
    """
    return (
        scale is not None
        and host.at_hand(scale)
        and x.dtype in (torch.float32, torch.float64)
        and float(scale.amin()) > 0
    )


def _folded_weight(weight: Tensor, scale: Tensor | None, x: Tensor) -> Tensor:
    """The weight with the scale of the BatchNorm after the convolution, laid out as ``x``."""
    if scale is None:
        return weight
    folded = empty_like(weight, memory_format_of(x))
    return torch.mul(weight, scale.view(-1, *[1] * (weight.dim() - 1)), out=folded)


def _laid_out(weight: Tensor, x: Tensor) -> Tensor:
    """The weight in the layout of ``x``, to which the CPU's convolutions copy it.

    They take memory from the system for that, page by page.
    """
    layout = memory_format_of(x)
    if not x.is_cpu or weight.is_contiguous(memory_format=layout):
        return weight
    return empty_like(weight, layout).copy_(weight)


def _folded_bias(
    ctx: Context, bias: Tensor | None, scale: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """The bias of the convolution and the BatchNorm after it as one."""
    if scale is None:
        return bias
    _, beta, mean, _ = ctx.operands
    centred: Tensor = -mean if bias is None else bias - mean
    folded = centred * scale
    if beta is not None:
        folded = folded + beta
    return folded if folded.dtype == dtype else folded.to(dtype)


def _padding_pairs(site: Site, dilation: list[int]) -> list[int]:
    """(low, high) per spatial dimension: the convolution's own and that of the pad before."""
    arguments, dimensions = site.node.arguments, len(dilation)
    padding = arguments["padding"]
    if padding == "valid":
        own = [0] * (2 * dimensions)
    elif padding == "same":
        own = []
        kernel = site.graph.shape_of(arguments["weight"].name)[2:]
        for size, step in zip(site.graph.sized(kernel, 0), dilation, strict=True):
            total = step * (size - 1)
            own += [total // 2, total - total // 2]
    else:
        own = [amount for amount in _per_dimension(padding, dimensions) for _ in range(2)]
    outer = site.fusion.padding.get(site.node.name, (0,) * (2 * dimensions))
    return [a + b for a, b in zip(own, outer, strict=True)]


def _tensors(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *_args: Any, **_kwargs: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    return x, weight, bias


def _per_dimension(value: int | list[int], dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values
