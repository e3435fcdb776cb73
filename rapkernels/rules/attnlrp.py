"""AttnLRP: relevance to the weights of attention, and through their softmax to queries and keys.

Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers",
ICML 2024. Two rules, of which attention is made:

    product  O_jp = sum_i A_ji V_ip     R_A[j,i] = sum_p A_ji V_ip R_jp / (2 O_jp)
                                        R_V[i,p] = sum_j A_ji V_ip R_jp / (2 O_jp)
    softmax  s = softmax(x)             R_i = x_i (R_i - s_i sum_j R_j)

The product is bilinear: its Taylor expansion at (A, V) counts every term A_ji V_ip twice, once for
each factor, so that halves conserve. The expansion of softmax at x is x^T J (R / s) with the
Jacobian J = diag(s) - s s^T; it has a bias, whose part is absorbed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from rapkernels.graph import Graph, Node, Ref, bound_refs
from rapkernels.reference._shares import share, stabilized
from rapkernels.relevance import Relevance, saturate
from rapkernels.rules.base import Context, NoRuleError, Rule, Site
from rapkernels.rules.mixing import Attention, WeightedSum


class Softmax(Rule):
    """Softmax by its first-order Taylor expansion; masked entries take nothing."""

    name = "attnlrp"
    family: ClassVar[str] = "softmax"
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.method.attention != "attnlrp":
            raise NoRuleError(
                'relevance passes a softmax inside of a model with attention="attnlrp" alone'
            )
        self._dim = int(site.node.arguments["dim"]) % len(site.node.shape)

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        result = super().forward(ctx, *args, **kwargs)
        ctx.save(args[0], result)
        return result

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        x, weights = ctx.saved
        wide = _wide(x.dtype)
        incoming = _by_target(ctx, relevance, wide)
        values = through_softmax(x.to(wide), weights.to(wide), incoming, self._dim - x.dim())
        _absorb(ctx, incoming - values)
        return Relevance(saturate(values.flatten(0, 1), x.dtype))


class MatrixProduct(Rule):
    """A product of matrices that both carry relevance: half goes to each.

    The terms share as those of the method's residual adds do, so that with LRP this is AttnLRP's
    rule, and with methods whose shares are bounded the products of magnitudes take the place of
    ``A_ji V_ip``.
    """

    name = "attnlrp"
    family: ClassVar[str] = "product"
    fresh = True
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.node.operation in ("aten.linear.default", "aten.addmm.default"):
            raise NoRuleError("its weight depends on the input")

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        ctx.save(dict(bound_refs((self.node.args, self.node.kwargs), (args, kwargs))))
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> list[Relevance | None]:
        (values,) = ctx.saved
        names = list(values)
        dtype = values[names[0]].dtype
        shared = share_product(
            lambda *factors: self.node.run(dict(zip(names, factors, strict=True))),
            [value.to(_wide(dtype)) for value in values.values()],
            _by_target(ctx, relevance, _wide(dtype)),
            _Sharing.of(self.site, len(self.site.inputs)),
            [name in self.site.inputs for name in names],
        )
        _absorb(ctx, shared.absorbed)
        states = {
            name: Relevance(saturate(part.flatten(0, 1), dtype))
            for name, part in zip(names, shared.parts, strict=True)
            if part is not None
        }
        # A factor that is read twice gets all of its relevance at the first mention.
        return [states.pop(name, None) for name in self.site.inputs]


class AttnLrpAttention(Rule):
    """Scaled dot-product attention as the product, softmax and product that it fuses."""

    name = "attnlrp"
    family: ClassVar[str] = "product"
    fresh = True
    takes_targets = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        arguments = site.node.arguments
        if arguments["dropout_p"] != 0:
            raise NoRuleError("its dropout is active (dropout_p is not 0)")
        self._mentions = [
            argument.name if isinstance(argument, Ref) else ""
            for argument in (arguments[name] for name in ("query", "key", "value"))
        ]
        self._carry = [site.graph.is_activation(name) for name in self._mentions]
        mask = arguments["attn_mask"]
        if isinstance(mask, Ref) and site.graph.is_activation(mask.name):
            raise NoRuleError("its mask depends on the input")

    @override
    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(self.node.arguments, args, strict=False)) | kwargs
        ctx.save(*(given[name] for name in ("query", "key", "value")), given.get("attn_mask"))
        return super().forward(ctx, *args, **kwargs)

    @override
    def backward(self, ctx: Context, relevance: Relevance) -> list[Relevance | None]:
        query, key, value, mask = ctx.saved
        dtype = query.dtype
        query, key, value = (tensor.to(_wide(dtype)) for tensor in (query, key, value))
        repeats = query.shape[-3] // key.shape[-3] if self.node.arguments["enable_gqa"] else 1
        scores, weights = self._weights(query, _repeated(key, repeats), mask)
        weigh, carried = any(self._carry[:2]), self._carry
        outer = share_product(
            lambda weights, value: weights @ _repeated(value, repeats),
            [weights, value],
            _by_target(ctx, relevance, value.dtype),
            _Sharing.of(self.site, weigh + carried[2]),
            [weigh, carried[2]],
        )
        parts: list[Tensor | None] = [None, None, outer.parts[1]]
        lost = [outer.absorbed]
        if weigh:
            assert outer.parts[0] is not None
            moved = through_softmax(scores, weights, outer.parts[0], -1)
            lost.append(outer.parts[0] - moved)
            inner = share_product(
                lambda query, key: query @ _repeated(key, repeats).mT,
                [query, key],
                moved,
                _Sharing.of(self.site, sum(carried[:2])),
                carried[:2],
            )
            parts[:2] = inner.parts
            lost.append(inner.absorbed)
        for amount in lost:
            _absorb(ctx, amount)
        found: dict[str, list[Relevance | None]] = {}
        for name, part in zip(self._mentions, parts, strict=True):
            state = None if part is None else Relevance(saturate(part.flatten(0, 1), dtype))
            found.setdefault(name, []).append(state)
        return [found[name].pop(0) for name in self.site.inputs]

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What softmax is taken of, and the softmax: 0 in rows that are masked altogether."""
        scale = self.node.arguments["scale"]
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if self.node.arguments["is_causal"]:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        if mask is not None:
            is_bool = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask, -torch.inf) if is_bool else scores + mask
        nothing = scores.isneginf().all(-1, keepdim=True)
        return scores, torch.softmax(scores, -1).masked_fill(nothing, 0)


class _Sharing(NamedTuple):
    """How the terms of a product share.

    Attributes:
        rule: see :func:`rapkernels.reference._shares.share`.
        stabilizer: added by sign to the product before it divides.
        factors: the number of factors that take an equal part each.
    """

    rule: str
    stabilizer: float
    factors: int

    @classmethod
    def of(cls, site: Site, factors: int) -> _Sharing:
        """As the residual adds of a site's method."""
        sharing = site.method.sharing
        return cls(sharing.add, sharing.stabilizer, factors)


class SharedProduct(NamedTuple):
    """Relevance of the factors of a product.

    Attributes:
        parts: of each factor ``(T, *factor.shape)``, None where it carries none.
        absorbed: ``(T, *product.shape)``, what the stabilizer and products of 0 took.
    """

    parts: list[Tensor | None]
    absorbed: Tensor


def share_product(
    function: Callable[..., Tensor],
    factors: Sequence[Tensor],
    incoming: Tensor,
    sharing: _Sharing,
    carry: Sequence[bool] | None = None,
) -> SharedProduct:
    """Share the relevance of a multilinear function among its factors.

    Args:
        function: the product, linear in each of its factors.
        factors: what it is called with, float32 or float64.
        incoming: ``(T, *product.shape)``, its relevance, in their dtype.
        sharing: how.
        carry: which factors carry relevance, None for all.
    """
    carry = [True] * len(factors) if carry is None else carry
    with torch.enable_grad():
        terms = [
            share(factor, sharing.rule).detach().requires_grad_(wanted)
            for factor, wanted in zip(factors, carry, strict=True)
        ]
        whole = function(*terms)
    divisor, added = stabilized(whole.detach(), sharing.stabilizer)
    met = divisor != 0
    quotient = torch.where(met, incoming / torch.where(met, divisor, 1), 0)
    quotient = saturate(quotient, quotient.dtype)
    leaves = [term for term in terms if term.requires_grad]
    gradients = [
        torch.autograd.grad(whole, leaves, part / sharing.factors, retain_graph=True)
        for part in quotient
    ]
    columns = iter(zip(*gradients, strict=True))
    parts = [
        term.detach() * torch.stack(next(columns)) if term.requires_grad else None for term in terms
    ]
    return SharedProduct(parts, torch.where(met, quotient * added, incoming))


# As `kCancellationFactor` of the kernels.
_CANCELLATION = 8


def through_softmax(x: Tensor, weights: Tensor, incoming: Tensor, dim: int) -> Tensor:
    """``x_i (R_i - s_i sum_j R_j)``; 0 where ``s_i`` is 0, as x may be minus infinity there.

    What the difference leaves of rounding is 0 too: where all values are alike, as in a blank
    sample, attention has nothing to choose from, and methods that normalise would make a map of it.

    Args:
        x: what softmax was taken of.
        weights: the softmax s, shaped like ``x``.
        incoming: ``(T, *x.shape)``, the relevance R of ``s``.
        dim: the dimension that softmax sums over, counted from the last.
    """
    moved = incoming - weights * incoming.sum(dim, keepdim=True)
    rounding = _CANCELLATION * torch.finfo(moved.dtype).eps * incoming.abs()
    carries = (weights > 0) & ~(moved.abs() <= rounding)
    return saturate(torch.where(carries, x * moved, 0), moved.dtype)


def with_attnlrp(graph: Graph, node: Node, rule: type[Rule] | None) -> type[Rule] | None:
    """The class of rules that AttnLRP has in the place of one that holds weights constant."""
    if rule is Attention:
        return AttnLrpAttention
    if rule is WeightedSum and len(graph.activations(node)) > 1:
        return MatrixProduct
    return rule


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Halves have no room for quotients."""
    return torch.promote_types(dtype, torch.float32)


def _by_target(ctx: Context, relevance: Relevance, dtype: torch.dtype) -> Tensor:
    """``(T, N, ...)``."""
    values = ctx.materialise(relevance).to(dtype)
    return values.view(ctx.targets, -1, *values.shape[1:])


def _absorb(ctx: Context, amount: Tensor) -> None:
    """Count ``(T, N, ...)`` as absorbed."""
    if ctx.wants_absorbed:
        ctx.absorb(amount.to(torch.float64).flatten(2).sum(2).flatten())


def _repeated(heads: Tensor, times: int) -> Tensor:
    """Keys and values of a group of queries, for each of them."""
    return heads if times == 1 else heads.repeat_interleave(times, -3)
