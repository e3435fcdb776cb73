"""What a rule is, and what it sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rapkernels.channels import Channels
from rapkernels.fusion import Fusion
from rapkernels.graph import Graph, Node
from rapkernels.relevance import Relevance

Role = Literal["inner", "input", "output"]


def _nothing_to_check(graph: Graph, families: Mapping[str, str], settings: Any) -> None:
    pass


class NoRuleError(Exception):
    """Raised by a rule's constructor: this node cannot be propagated through; says why."""


@dataclass(frozen=True)
class Sharing:
    """How pools, means and sums of activations share relevance among what they combine.

    Attributes:
        pool: share of an entry of an average or mean: "absolute", "ratio" or "positive" (see
            ``relprop_avg_pool``).
        add: share of a term of a sum of activations, likewise.
        stabilizer: added by sign to an average or sum before it divides.
        absorb_zeros: whether max-pool windows whose output is 0 absorb.
        positive_part: whether the winner of a window is that of the inputs' positive parts.
        by_squares: whether the relevance of a position is shared anew among its channels first, by
            their squares (Sharing Ratio Decomposition).
    """

    pool: str = "absolute"
    add: str = "absolute"
    stabilizer: float = 0.0
    absorb_zeros: bool = True
    positive_part: bool = False
    by_squares: bool = False


@dataclass(frozen=True)
class Method:
    """How a method chooses the rules of a graph's nodes; programs are cached by it.

    Attributes:
        name: the method's name.
        choose: maps the class for an operation and the site to the class that the site gets.
        settings: what the method's own rules read, hashable.
        sharing: how pools and sums share.
        fold_batch_norm: whether a BatchNorm becomes part of the convolution before it.
        drop_at_zero: whether BatchNorm and concatenation drop relevance where their input is 0.
        chosen: what the caller chose: (node, module path or pattern of paths, class of the rule).
        strict: whether operations without a rule are refused; else they are linearised.
        attention: "constant" where attention weights are constants, "attnlrp" where they carry
            relevance (see :mod:`rapkernels.rules.attnlrp`).
        precision: "fp32", or "bf16" where convolutions may round what they split.
        check: raises ArgumentError where the settings do not fit a graph; called with the graph,
            the family of each activation's rule, and the settings.
    """

    name: str
    choose: Callable[[type[Rule], Site], type[Rule]]
    settings: Any = None
    sharing: Sharing = Sharing()
    fold_batch_norm: bool = True
    drop_at_zero: bool = False
    chosen: tuple[tuple[str, type[Rule]], ...] = ()
    strict: bool = True
    attention: str = "constant"
    precision: str = "fp32"
    check: Callable[[Graph, Mapping[str, str], Any], None] = _nothing_to_check


@dataclass(frozen=True)
class Site:
    """Where a rule is put: one node of one graph, and what is known about it.

    Attributes:
        node: the operation.
        graph: the graph that it belongs to.
        method: the method that rules are chosen for.
        role: "input" for the first convolution or linear layer from the input, "output" for the
            last linear layer, else "inner".
        fusion: the BatchNorms and pads that are part of convolutions.
        nonnegative: names of the values that cannot be negative.
        rules: rules of the nodes before this one.
        channels: where the channels of the node's value are, None if unknown.
        is_first: whether it is the first convolution or linear layer from the input, even where
            it is the last linear layer too.
    """

    node: Node
    graph: Graph
    method: Method
    role: Role
    fusion: Fusion
    nonnegative: frozenset[str]
    rules: Mapping[str, Rule]
    channels: Channels | None = None
    is_first: bool = False

    @property
    def settings(self) -> Any:
        """The method's own settings."""
        return self.method.settings

    @property
    def inputs(self) -> tuple[str, ...]:
        """The activations that the node reads."""
        return self.graph.activations(self.node)

    def batch_dim(self, name: str) -> int:
        """The dimension of a value that is the batch.

        Raises:
            NoRuleError: the graph does not tell.
        """
        if name in self.graph.unplaced:
            raise NoRuleError(
                "it is not known which dimension of its input is the batch, as the model exports "
                f"for a batch of {self.graph.fixed_batch} alone and moves its first dimension: "
                "write the model for any batch size, or keep samples in the first dimension"
            )
        return self.graph.batch_dim(name)

    def owns(self, name: str) -> bool:
        """Whether the node may overwrite an input: fresh, not saved, and read by it alone."""
        return (
            name in self.rules
            and self.graph.only_user(name) is self.node
            and self.rules[name].fresh
        )


@dataclass
class Context:
    """One run of one node: hands the rule's forward to its backward and reaches the backend.

    Attributes:
        ops: the module of relevance operations: ``rapkernels.ops`` or ``rapkernels.reference``.
        operands: the current values of the rule's ``operands``.
        bounds: (low, high) of the input of an input layer, where the user gave bounds.
        wants_absorbed: whether somebody will read what :meth:`absorb` is given.
        targets: the number T of targets: relevance has T times the samples of the activations,
            target-major.
        one_hot: whether the relevance of the output is that of one entry for each sample.
    """

    ops: ModuleType
    operands: tuple[Any, ...] = ()
    bounds: tuple[Tensor, Tensor] | None = None
    wants_absorbed: bool = False
    targets: int = 1
    one_hot: bool = True
    saved: tuple[Any, ...] = ()
    absorbed: Tensor | None = field(default=None, repr=False)

    def save(self, *values: Any) -> None:
        """Keep tensors (or anything else) for the backward step, as ``ctx.saved``."""
        self.saved = values

    def absorb(self, amount: Tensor) -> None:
        """Count relevance that met no message: ``(N,)`` float64, or finer, sample by sample."""
        if self.absorbed is not None:
            known = self.absorbed
            if len(known) != len(amount):
                # One part of a step counts by sample, the other by head of a sample.
                rows = min(len(known), len(amount))
                known, amount = (part.view(rows, -1).sum(1) for part in (known, amount))
            amount = known + amount
        self.absorbed = amount

    def settle(self, values: Tensor, psi: Tensor, scale: Tensor, absorbed: Tensor) -> Relevance:
        """Take the four results of a relevance operation: count the last, return the others."""
        self.absorb(absorbed)
        return Relevance(values, psi, scale)

    def materialise(self, relevance: Relevance) -> Tensor:
        """The true relevance as a tensor: pending shift and scale applied."""
        if relevance.psi is None and relevance.scale is None:
            return relevance.values
        result: Tensor = self.ops.apply_shift(*relevance)
        return result


class Rule:
    """How one node runs forward and how it hands relevance back.

    An instance belongs to one node of one graph and holds no state of a call: several threads use
    it at once. To support an operation, write a subclass and register it with
    :func:`rapkernels.register_rule`; it must overwrite :meth:`backward` and usually
    :meth:`forward`, to save what backward needs.

    Attributes:
        name: what ``plan`` and reports show.
        family: what the rest of the graph may conclude from the operation: "structure" (moves,
            copies or leaves out entries), "affine" (element-wise with a constant), "batch_norm",
            "activation", "pool", "conv", "linear", "add", or anything else.
        fuses: the part it can play in :func:`rapkernels.fusion.fuse`, None for none.
        fresh: the forward returns a new tensor which the rule does not save, so that the next
            node may overwrite it.
        operands: values of parameters or constants (``Ref``) wanted in ``ctx.operands`` beside
            the node's own arguments.
        takes_targets: whether the backward takes the relevances of several targets at once
            (``ctx.targets``); else it is called for one after the other.
        again: whether the node's value costs so little to compute again that nobody need keep it:
            by :meth:`remake` from what the rule has saved ("saved"), or by :meth:`forward` from the
            one activation that it reads ("input"); None where it must be kept.
    """

    name: str = "custom"
    family: ClassVar[str] = "custom"
    fuses: ClassVar[Literal["conv", "batch_norm", "pad"] | None] = None
    fresh: bool = False
    operands: tuple[Any, ...] = ()
    takes_targets: bool = False
    again: Literal["saved", "input"] | None = None

    def __init__(self, site: Site) -> None:
        self.site = site
        self.node = site.node

    @classmethod
    def carried(cls, graph: Graph, node: Node) -> tuple[str, ...]:
        """The activations that relevance goes to; the others are constants to this rule.

        What only constants depend on gets no rule at all.
        """
        return graph.activations(node)

    @classmethod
    def at(cls, site: Site) -> Rule:
        """The rule for a site: of this class, or of the one that the site's method has for it."""
        return site.method.choose(cls, site)(site)

    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Compute the node's value from the operation's arguments, in the order of its schema."""
        result: Tensor = self.node.call(*args, **kwargs)
        return result

    def backward(
        self, ctx: Context, relevance: Relevance
    ) -> Relevance | Sequence[Relevance | None]:
        """Return the relevance of the activations the node reads, in the order of its arguments.

        One :class:`~rapkernels.Relevance` where it reads one activation, else a sequence with one
        entry each; None is no relevance. ``values`` must have the shape and dtype of the
        activation; what finds no way goes to ``ctx.absorb``.
        """
        raise NotImplementedError(f"{type(self).__name__} must overwrite backward")

    def remake(self, ctx: Context) -> Tensor:
        """The node's value once more, bit by bit, where ``again`` is "saved"."""
        raise NotImplementedError(f"{type(self).__name__} must overwrite remake")

    def at_output(self, relevance: Tensor) -> Tensor:
        """The relevance of the node's value as the module returns it (``layers=``)."""
        return relevance

    def propagate(self, ctx: Context, relevance: Relevance) -> list[Relevance | None]:
        """:meth:`backward` for all targets of the call, as a list."""
        if ctx.targets == 1 or self.takes_targets:
            return _listed(self.backward(ctx, relevance))
        parts: list[list[Relevance | None]] = []
        absorbed: list[Tensor] = []
        for part in relevance.split(ctx.targets):
            single = replace(ctx, targets=1, absorbed=None)
            parts.append(_listed(self.backward(single, part)))
            if single.absorbed is not None:
                absorbed.append(single.absorbed)
        if absorbed:
            ctx.absorb(torch.cat(absorbed))
        return [_joined(states) for states in zip(*parts, strict=True)]


def _listed(result: Relevance | Sequence[Relevance | None]) -> list[Relevance | None]:
    return [result] if isinstance(result, Relevance) else list(result)


def _joined(states: Sequence[Relevance | None]) -> Relevance | None:
    known = [state for state in states if state is not None]
    return Relevance.cat(known) if len(known) == len(states) else None
