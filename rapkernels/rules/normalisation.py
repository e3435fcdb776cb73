"""Normalisations by statistics of the sample: those are constants, so that relevance passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Node, Ref
from rapkernels.rules.base import Context, NoRuleError, Site
from rapkernels.rules.elementwise import Identity


class Normalisation(Identity):
    """Layer, group, instance, RMS and local response normalisation."""

    family: ClassVar[str] = "normalisation"
    fresh = True

    def __init__(self, site: Site) -> None:
        if site.node.index not in (None, 0):
            raise NoRuleError("the statistics of a normalisation carry no relevance")
        super().__init__(site)
        self._needs_contiguous = site.node.operation == "aten.native_group_norm.default"

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        # Values are in another layout here than in the model, which may have changed it before.
        first = args[0].contiguous() if self._needs_contiguous else args[0]
        return super().forward(ctx, first, *args[1:], **kwargs)


NORMALISATIONS = tuple(
    f"aten.{name}.default"
    for name in (
        *("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm"),
        *("rms_norm", "_fused_rms_norm"),
    )
)


def normalised_like(node: Node, values: Mapping[str, Any], seen: Tensor, x: Tensor) -> Tensor:
    """A normalisation of ``x`` with the statistics of another tensor.

    Args:
        node: one of ``NORMALISATIONS``.
        values: those of the node's weight and bias, among others.
        seen: what the statistics are taken of.
        x: like ``seen``.

    Returns:
        A tensor like ``x``.
    """
    arguments = {
        name: values[value.name] if isinstance(value, Ref) else value
        for name, value in node.arguments.items()
    }
    if not arguments.get("use_input_stats", True):
        result: Tensor = node.run({**values, node.arguments["input"].name: x})
        return result
    wide = torch.promote_types(seen.dtype, torch.float32)
    scale, shift = arguments.get("weight"), arguments.get("bias")
    grouped, whole = seen.to(wide), x.to(wide)
    if "normalized_shape" in arguments:
        dims = list(range(-len(arguments["normalized_shape"]), 0))
    else:
        # Groups of channels; an instance norm has one for each channel.
        groups = arguments.get("num_groups", arguments.get("group", seen.shape[1]))
        grouped = grouped.reshape(seen.shape[0], groups, -1)
        whole, dims = whole.reshape(grouped.shape), [2]
        placed = (-1, *[1] * (seen.dim() - 2))
        scale, shift = (None if part is None else part.view(placed) for part in (scale, shift))
    centre = 0 if "rms_norm" in node.operation else grouped.mean(dims, keepdim=True)
    spread = (grouped - centre).square().mean(dims, keepdim=True)
    eps = arguments["eps"]
    eps = torch.finfo(seen.dtype).eps if eps is None else eps
    found = ((whole - centre) * torch.rsqrt(spread + eps)).reshape(seen.shape)
    found = found if scale is None else found * scale
    return (found if shift is None else found + shift).to(seen.dtype)
