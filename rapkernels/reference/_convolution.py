"""A linear layer or a 1-d/2-d/3-d convolution as a linear map with its exact adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rapkernels.reference._checks import (
    check_dim,
    check_like,
    check_list,
    check_storage,
    check_targets,
    expand,
    require,
)


@dataclass(frozen=True)
class LinearMap:
    """``forward(x, w)`` is ``x w^T`` over the last dimension, ``adjoint`` its transpose."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight)

    def adjoint(self, s: Tensor, weight: Tensor) -> Tensor:
        return s @ weight

    def per_output(self, values: Tensor) -> Tensor:
        """One value per output, as it broadcasts to what ``forward`` returns."""
        return values


@dataclass(frozen=True)
class ConvMap:
    """Convolution without bias; ``padding`` holds (low, high) per spatial dimension."""

    size: tuple[int, ...]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def _padding_for_pad(self) -> list[int]:
        # functional.pad lists the last dimension first.
        pairs = list(zip(self.padding[::2], self.padding[1::2], strict=True))
        return [edge for pair in reversed(pairs) for edge in pair]

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        padded = functional.pad(x, self._padding_for_pad())
        zeros = [0] * len(self.size)
        return torch.convolution(
            padded, weight, None, self.stride, zeros, self.dilation, False, zeros, self.groups
        )

    def adjoint(self, s: Tensor, weight: Tensor) -> Tensor:
        zeros = [0] * len(self.size)
        spread = torch.convolution(
            s, weight, None, self.stride, zeros, self.dilation, True, zeros, self.groups
        )
        # Rows that no window reached are missing at the high end: pad them, then crop the padding.
        edges: list[int] = []
        for axis in reversed(range(len(self.size))):
            low = self.padding[2 * axis]
            edges += [-low, low + self.size[axis] - spread.shape[2 + axis]]
        cropped: Tensor = functional.pad(spread, edges)
        return cropped

    def per_output(self, values: Tensor) -> Tensor:
        """One value per output channel, as it broadcasts to what ``forward`` returns."""
        return values.view(-1, *[1] * len(self.size))


def conv_map(
    op: str,
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> ConvMap:
    """Check the arguments of a convolution; return it as a map."""
    check_storage(op, "x", x)
    check_dim(op, "x", x, 3, 5)
    check_dim(op, "weight", weight, x.dim(), x.dim())
    check_like(op, "weight", weight, "x", x)
    check_like(op, "relevance", relevance, "x", x)
    dims = x.dim() - 2
    stride, dilation = expand(stride, dims), expand(dilation, dims)
    padding = expand(padding, 2 * dims)
    check_list(op, "stride", stride, dims, 1)
    check_list(op, "padding", padding, 2 * dims, 0)
    check_list(op, "dilation", dilation, dims, 1)
    require(
        groups >= 1 and weight.shape[0] % groups == 0,
        f"{op}: groups must be positive and divide the {weight.shape[0]} output channels of "
        f"weight, got {groups}",
    )
    require(
        x.shape[1] == weight.shape[1] * groups,
        f"{op}: x must have {weight.shape[1] * groups} channels, as weight {list(weight.shape)} "
        f"with {groups} groups needs, got {list(x.shape)}",
    )
    out = [weight.shape[0]]
    for axis in range(dims):
        reach = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        room = x.shape[2 + axis] + padding[2 * axis] + padding[2 * axis + 1] - reach
        require(
            room >= 0,
            f"{op}: x must be at least as large as the kernel's reach of {reach} in spatial "
            f"dimension {axis} with its padding, got {list(x.shape)}",
        )
        out.append(room // stride[axis] + 1)
    check_targets(op, "relevance", relevance, "x", x, out)
    return ConvMap(tuple(x.shape[2:]), stride, padding, dilation, groups)
