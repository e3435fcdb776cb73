"""Resampling: sums of entries with weights that their places give."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph, Node, map_refs
from rapkernels.reference._shares import share
from rapkernels.rules.base import NoRuleError, Site
from rapkernels.rules.mixing import Attention, Mixing


class Resampling(Mixing):
    """Interpolation, and other sums of one activation with weights of their own."""

    @classmethod
    @override
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        return graph.activations(node)


# Which weights a mix is of: those of one sign, or all by their magnitude (0).
_SIGN = "sign of the weights"


class Bicubic(Resampling):
    """Bicubic interpolation, whose weights have both signs: messages count by their magnitude."""

    family: ClassVar[str] = "bicubic"

    @override
    def _messages(self, known: dict[str, Any], x: Tensor) -> list[tuple[dict[str, Any], Tensor]]:
        if self._sharing.pool == "ratio":
            return super()._messages(known, x)
        if self._sharing.pool == "absolute":
            return [(known | {_SIGN: 0}, x.abs())]
        return [(known | {_SIGN: sign}, share(sign * x, self._sharing.pool)) for sign in (1, -1)]

    @override
    def _mix(self, known: dict[str, Any], signal: Tensor) -> Tensor:
        sign = known.get(_SIGN)
        if sign is None:
            return super()._mix(known, signal)
        _, size, aligned, factors = self._arguments(known)
        height, width = (
            _bicubic_matrix(signal, dim, out, aligned, None if factors is None else factors[dim])
            for dim, out in enumerate(size)
        )
        if sign == 0:
            return torch.einsum("oh,nchw,pw->ncop", height.abs(), signal, width.abs())
        # The weights of one sign: of an image they are products.
        first = torch.einsum("oh,nchw,pw->ncop", height.relu(), signal, (sign * width).relu())
        second = torch.einsum("oh,nchw,pw->ncop", (-height).relu(), signal, (-sign * width).relu())
        return first + second

    def _arguments(self, values: dict[str, Any]) -> tuple[Tensor, Any, bool, Any]:
        arguments = self.node.arguments
        x = values[self._signal]
        factors = arguments["scale_factors"]
        size = arguments["output_size"]
        if size is None:
            size = [int(n * factor) for n, factor in zip(x.shape[2:], factors, strict=True)]
        else:
            size, factors = map_refs(size, values.__getitem__), None
        return x, size, bool(arguments["align_corners"]), factors


def _bicubic_matrix(x: Tensor, dim: int, out: int, aligned: bool, factor: float | None) -> Tensor:
    """``(O, I)``: bicubic interpolation along one dimension of an image."""
    entries = torch.eye(x.shape[2 + dim], dtype=x.dtype, device=x.device)[None, :, :, None]
    resize = torch.ops.aten.upsample_bicubic2d.default
    weights: Tensor = resize(entries, [out, 1], aligned, factor, None)[0, :, :, 0]
    return weights.t()


class Sampling(Attention):
    """Values read at places between the entries, which are constants (``grid_sample``)."""

    _values = "input"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.node.arguments["interpolation_mode"] == 2:
            raise NoRuleError("grid_sample has a rule for the modes bilinear and nearest only")
