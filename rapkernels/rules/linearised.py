"""What stands in for a rule where an operation has none and the caller does not insist on one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import bound_refs
from rapkernels.relevance import Relevance, saturate
from rapkernels.rules.base import Context, Rule
from rapkernels.rules.structure import absorb_difference


class Linearised(Rule):
    """``x * J^T (R / y)``: gradient times input over the output, for any differentiable operation.

    It conserves where the operation is homogeneous; what it changes is counted as absorbed.
    """

    name = "linearised"
    family: ClassVar[str] = "custom"

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        ctx.save(args, kwargs)
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Sequence[Relevance | None]:
        args, kwargs = ctx.saved
        incoming = ctx.materialise(relevance)
        values = dict(bound_refs((self.node.args, self.node.kwargs), (args, kwargs)))
        names = list(dict.fromkeys(self.site.inputs))
        with torch.enable_grad():
            leaves = {name: values[name].detach().requires_grad_() for name in names}
            output: Tensor = self.node.run(values | leaves)
            y = output.detach()
            met = y != 0
            quotient = saturate(torch.where(met, incoming / torch.where(met, y, 1), 0), y.dtype)
            gradients: Sequence[Tensor] = [torch.zeros_like(values[name]) for name in names]
            if output.requires_grad:
                gradients = torch.autograd.grad(
                    output, list(leaves.values()), quotient, materialize_grads=True
                )
        states = {
            name: Relevance(saturate(values[name] * gradient, values[name].dtype))
            for name, gradient in zip(names, gradients, strict=True)
        }
        absorb_difference(ctx, Relevance(incoming), list(states.values()))
        # An input that is read twice gets all of its relevance at the first mention.
        return [states.pop(name, None) for name in self.site.inputs]
