"""What a rule is, and what it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Literal

from torch import Tensor

from rapkernels.fusion import Fusion
from rapkernels.graph import Graph, Node
from rapkernels.relevance import Relevance
from rapkernels.variants import Variant

Role = Literal["inner", "input", "output"]


class NoRuleError(Exception):
    """Raised by a rule's constructor: this node cannot be propagated through; says why."""


@dataclass(frozen=True)
class Site:
    """Where a rule is put: one node of one graph, and what is known about it.

    Attributes:
        node: the operation.
        graph: the graph that it belongs to.
        variant: the variant that rules are chosen for.
        role: "input" for the first convolution or linear layer from the input, "output" for the
            last linear layer, else "inner".
        fusion: the BatchNorms and pads that are part of convolutions.
        nonnegative: names of the values that cannot be negative.
        rules: rules of the nodes before this one.
    """

    node: Node
    graph: Graph
    variant: Variant
    role: Role
    fusion: Fusion
    nonnegative: frozenset[str]
    rules: Mapping[str, Rule]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The activations that the node reads."""
        return self.graph.activations(self.node)

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
    """

    ops: ModuleType
    operands: tuple[Any, ...] = ()
    bounds: tuple[Tensor, Tensor] | None = None
    wants_absorbed: bool = False
    saved: tuple[Any, ...] = ()
    absorbed: Tensor | None = field(default=None, repr=False)

    def save(self, *values: Any) -> None:
        """Keep tensors (or anything else) for the backward step, as ``ctx.saved``."""
        self.saved = values

    def absorb(self, amount: Tensor) -> None:
        """Count relevance that met no message: ``(N,)`` float64."""
        self.absorbed = amount if self.absorbed is None else self.absorbed + amount

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
    """

    name: str = "custom"
    family: ClassVar[str] = "custom"
    fuses: ClassVar[Literal["conv", "batch_norm", "pad"] | None] = None
    fresh: bool = False
    operands: tuple[Any, ...] = ()

    def __init__(self, site: Site) -> None:
        self.site = site
        self.node = site.node

    @classmethod
    def at(cls, site: Site) -> Rule:
        """The rule for a site: an instance of this class, or of another that the site asks for."""
        return cls(site)

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

    def at_output(self, relevance: Tensor) -> Tensor:
        """The relevance of the node's value as the module returns it (``layers=``)."""
        return relevance
