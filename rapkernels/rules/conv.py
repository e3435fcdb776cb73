"""Convolutions, with the BatchNorm after and the zero pad before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn import functional
from typing_extensions import override

from rapkernels.fusion import CONVOLUTIONS, batch_norm_operands, is_convolution
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
    """

    keeps_z: bool = True

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
        self.stride = _per_dimension(arguments["stride"], dimensions)
        self.dilation = _per_dimension(arguments["dilation"], dimensions)
        self.groups = int(arguments["groups"])
        self._padding = arguments["padding"]
        self._outer = site.fusion.padding.get(site.node.name, (0,) * (2 * dimensions))
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
        folded, bias = self.folded_weight(ctx, weight, x), self.folded_bias(ctx, bias, x.dtype)
        if not self.keeps_z:
            ctx.save(x, weight, None, bias)
            return self.convolve(x, folded, bias)
        ctx.save(x, weight, self.convolve(x, folded, None), bias)
        return self.remake(ctx)

    @override
    def remake(self, ctx: Context) -> Tensor:
        _, _, z, bias = ctx.saved
        if bias is None:
            result: Tensor = z
            return result
        return torch.add(z, bias.view(-1, *[1] * self.dimensions), out=empty_like(z))

    def geometry(self, weight: Tensor) -> tuple[list[int], list[int], list[int], int]:
        """Stride, (low, high) padding per spatial dimension, dilation and groups."""
        return self.stride, self._padding_pairs(weight), self.dilation, self.groups

    def _padding_pairs(self, weight: Tensor) -> list[int]:
        """(low, high) per spatial dimension: the convolution's own and that of the pad before."""
        if self._padding == "valid":
            own = [0] * (2 * self.dimensions)
        elif self._padding == "same":
            own = []
            for kernel, dilation in zip(weight.shape[2:], self.dilation, strict=True):
                total = dilation * (kernel - 1)
                own += [total // 2, total - total // 2]
        else:
            amounts = _per_dimension(self._padding, self.dimensions)
            own = [amount for amount in amounts for _ in range(2)]
        return [a + b for a, b in zip(own, self._outer, strict=True)]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with the padding of the pad before it too."""
        pairs = self._padding_pairs(weight)
        low, high = pairs[::2], pairs[1::2]
        if low != high:
            x = functional.pad(
                x, [edge for pair in zip(low[::-1], high[::-1], strict=True) for edge in pair]
            )
            low = [0] * self.dimensions
        convolve = _CONVOLVE[self.dimensions]
        return convolve(x, weight, bias, self.stride, low, self.dilation, self.groups)

    def folded_weight(self, ctx: Context, weight: Tensor, x: Tensor) -> Tensor:
        """The weight with the scale of the BatchNorm after the convolution, laid out as ``x``."""
        if self.batch_norm is None:
            return weight
        scale = self._batch_norm_scale(ctx).view(-1, *[1] * (weight.dim() - 1))
        folded = empty_like(weight, suggest_memory_format(x))
        return torch.mul(weight, scale, out=folded)

    def folded_bias(self, ctx: Context, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The bias of the convolution and the BatchNorm after it as one."""
        if self.batch_norm is None:
            return bias
        _, beta, mean, _ = ctx.operands
        centred: Tensor = -mean if bias is None else bias - mean
        folded = centred * self._batch_norm_scale(ctx)
        return (folded if beta is None else folded + beta).to(dtype)

    def _batch_norm_scale(self, ctx: Context) -> Tensor:
        """The factor gamma / sqrt(variance + eps), in float32 for the half types."""
        assert self.batch_norm is not None
        gamma, _, _, variance = ctx.operands
        if variance.dtype in (torch.float16, torch.bfloat16):
            variance = variance.float()
        scale = torch.rsqrt(variance + self.batch_norm.arguments["eps"])
        return scale if gamma is None else gamma * scale


def _tensors(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *_args: Any, **_kwargs: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    return x, weight, bias


def _per_dimension(value: int | list[int], dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values
