"""Linear layers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from rapkernels import _library, reference
from rapkernels.graph import Ref
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context, NoRuleError, Rule, Site

# operation -> (input, weight, bias) by the names of its schema; True: the weight is (I, O).
_LAYOUTS: dict[str, tuple[str, str, str | None, bool]] = {
    "aten.linear.default": ("input", "weight", "bias", False),
    "aten.addmm.default": ("mat1", "mat2", "self", True),
    "aten.mm.default": ("self", "mat2", None, True),
    "aten.matmul.default": ("self", "other", None, True),
}
LINEAR_OPERATIONS = tuple(_LAYOUTS)


# Rows from which csrc/relprop_linear.cpp does layers as convolutions or by matrix products, on the
# CPU. Those of fewer read their weights anew for z, which costs less than keeping it.
MANY_ROWS = 128


class Linear(Rule):
    """How a linear layer runs; each method's own class hands relevance back.

    Attributes:
        keeps_z: whether the backward is faster where it has the layer without bias.
        keeps_sums: whether the backward of few rows is faster where it has Z+ and Z-.
    """

    keeps_z: bool = False
    keeps_sums: bool = False

    family: ClassVar[str] = "linear"
    fresh = True
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        names = _LAYOUTS[site.node.operation]
        arguments = site.node.arguments
        x = arguments[names[0]]
        if not isinstance(x, Ref) or site.inputs != (x.name,):
            raise NoRuleError("it multiplies values that both depend on the input")
        if len(site.graph.shape_of(x.name)) < 2:
            raise NoRuleError("its input has no batch dimension")
        weight = arguments[names[1]]
        if len(site.graph.shape_of(weight.name)) != 2:
            raise NoRuleError("its weight does not have 2 dimensions")
        if arguments.get("beta", 1) != 1 or arguments.get("alpha", 1) != 1:
            raise NoRuleError("addmm has a rule for beta=1 and alpha=1 only")
        self._names = names
        self.nonnegative = x.name in site.nonnegative
        self._batch_dim = site.batch_dim(x.name)
        # Without a bias z is the value itself, which then is not to be overwritten.
        self.keeps_z = self.keeps_z and len(site.node.shape) > 2
        if self.keeps_z and arguments.get(names[2] or "") is None:
            self.fresh = False

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(self.node.arguments, args, strict=False)) | kwargs
        x_name, weight_name, bias_name, transposed = self._names
        x, weight = given[x_name], given[weight_name]
        bias = None if bias_name is None else given.get(bias_name)
        if ctx.bounds is not None:
            low, high = (bound.movedim(self._batch_dim, 0) for bound in ctx.bounds)
            ctx.bounds = low, high
        matrix = weight.t() if transposed else weight
        samples_first = x.movedim(self._batch_dim, 0)
        if not _has_many_rows(x):
            if self.keeps_sums and not transposed and _reads_weights_once(ctx, x):
                return self._from_sums(ctx, samples_first, matrix, bias)
            ctx.save(samples_first, matrix, None, bias, None)
            return super().forward(ctx, *args, **kwargs)
        # Of rows that do not follow each other torch makes a product for each sample.
        dense = x.contiguous()
        if not self.keeps_z:
            ctx.save(samples_first, matrix, None, bias, None)
            return _product(dense, matrix, bias)
        z = _product(dense, matrix)
        ctx.save(samples_first, matrix, z.movedim(self._batch_dim, 0), bias, None)
        return z if bias is None else z + bias

    def _from_sums(self, ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The value as Z+ - Z-, which are kept: each way then reads the weights once."""
        positive, negative = ctx.ops.linear_split(x, weight, self.nonnegative)
        ctx.save(x, weight, None, bias, (positive, negative))
        z: Tensor = (positive - negative).movedim(0, self._batch_dim)
        return z if bias is None else z + bias

    @override
    def propagate(self, ctx: Context, relevance: Relevance) -> list[Relevance | None]:
        """Sums are those of a sample, also where tokens come before samples."""
        dim = self._batch_dim
        if dim == 0:
            return super().propagate(ctx, relevance)
        values = ctx.materialise(relevance)
        values = values.view(ctx.targets, -1, *values.shape[1:]).movedim(dim + 1, 1)
        (state,) = super().propagate(ctx, Relevance(values.flatten(0, 1)))
        assert state is not None
        moved = ctx.materialise(state)
        moved = moved.view(ctx.targets, -1, *moved.shape[1:]).movedim(1, dim + 1)
        return [Relevance(moved.flatten(0, 1))]


def _has_many_rows(x: Tensor) -> bool:
    """Whether ``relprop_linear`` does them by products: see csrc/relprop_linear.cpp."""
    return x.dtype == torch.float32 and not x.is_cuda and x[..., 0].numel() >= MANY_ROWS


def _reads_weights_once(ctx: Context, x: Tensor) -> bool:
    """Whether the native CPU kernels, which do, sum as exactly as the layer does."""
    return ctx.ops is not reference and x.is_cpu and x.dtype in (torch.float32, torch.float64)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``functional.linear``, by what is fastest: see csrc/matrix_product.cpp."""
    native = _library.native()
    if native is None or type(x) is not Tensor or not x.is_cpu:
        return functional.linear(x, weight, bias)
    result: Tensor = native.matrix_product(x, weight, bias)
    return result
