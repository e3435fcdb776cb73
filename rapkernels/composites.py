"""Rules of Layer-wise Relevance Propagation, and composites: which layer gets which rule.

Names and conventions are those of the library zennit, with which results agree; sources of the
rules are Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
Relevance Propagation", PLoS ONE 2015, and Montavon et al., "Layer-Wise Relevance Propagation: An
Overview", 2019. ``stab(z)`` is ``z`` moved away from 0 by the stabilizer, ``m_ij = x_i w_ij`` a
message, ``b_j`` the bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.graph import Graph, Node
from rapkernels.node_keys import check_all_name, choose, modules_around

Family = Literal["conv", "linear"]
_FAMILIES = get_args(Family)


def _number(name: str, value: Any, least: float | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value) or (least is not None and value < least):
        floor = "" if least is None else f" and at least {least:g}"
        raise ArgumentError(f"{name} must be finite{floor}, got {value}")


class LayerRule:
    """A rule for convolutions and linear layers."""

    name: ClassVar[str]


class Contributions(LayerRule):
    """A rule that shares by the messages of the inputs.

    Attributes:
        operation: name of the scalar rule of ``relprop_conv`` and ``relprop_linear``.
        bias: whether the bias is part of the sums, where it takes its share of relevance.
    """

    operation: ClassVar[str]
    bias: bool = True

    @property
    def parameters(self) -> list[float]:
        """What the scalar rule takes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Epsilon(Contributions):
    """LRP-epsilon: ``R_i = sum_j m_ij / stab(sum_i m_ij + b_j) R_j``.

    Args:
        epsilon: the stabilizer.
        bias: whether the bias is part of the sum.
    """

    name = "epsilon"
    operation = "epsilon"
    epsilon: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        _number("epsilon", self.epsilon, 0)

    @property
    def parameters(self) -> list[float]:
        """``[epsilon]``."""
        return [self.epsilon]


@dataclass(frozen=True)
class GradientTimesInput(Epsilon):
    """LRP-0, epsilon without a stabilizer: in a network of ReLUs input times gradient.

    Relevance of a layer is then its value times the gradient of the output with respect to it
    (Ancona et al., "Towards better understanding of gradient-based attribution methods for deep
    neural networks", ICLR 2018); with other activations it is LRP-0, not the gradient.
    """

    name = "gradient_times_input"
    epsilon: float = 0.0


@dataclass(frozen=True)
class Gamma(Contributions):
    """LRP-gamma: messages of the output's sign count ``1 + gamma`` times.

    Args:
        gamma: how much they are favoured.
        stabilizer: keeps denominators from 0.
        bias: whether the bias is part of the sums.
    """

    name = "gamma"
    operation = "gamma"
    gamma: float = 0.25
    stabilizer: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        _number("gamma", self.gamma, 0)
        _number("stabilizer", self.stabilizer, 0)

    @property
    def parameters(self) -> list[float]:
        """``[gamma, stabilizer]``."""
        return [self.gamma, self.stabilizer]


@dataclass(frozen=True)
class AlphaBeta(Contributions):
    """LRP-alpha-beta: ``R_i = sum_j (alpha m+_ij / Z+_j - beta m-_ij / Z-_j) R_j``.

    ``Z+`` and ``Z-`` are the sums of the positive and of the negative messages, the bias one of
    them.

    Args:
        alpha: weight of the positive messages.
        beta: weight of the negative messages; ``alpha - beta`` must be 1.
        stabilizer: keeps denominators from 0.
        bias: whether the bias is part of the sums.
    """

    name = "alpha_beta"
    operation = "alpha_beta"
    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        _number("alpha", self.alpha, 0)
        _number("beta", self.beta, 0)
        _number("stabilizer", self.stabilizer, 0)
        if not math.isclose(self.alpha - self.beta, 1.0, abs_tol=1e-9):
            raise ArgumentError(
                f"alpha - beta must be 1, got alpha {self.alpha} and beta {self.beta}"
            )

    @property
    def parameters(self) -> list[float]:
        """``[alpha, beta, stabilizer]``."""
        return [self.alpha, self.beta, self.stabilizer]


@dataclass(frozen=True)
class ZPlus(Contributions):
    """The z+ rule: alpha-beta with ``alpha = 1``, ``beta = 0``.

    Args:
        stabilizer: keeps denominators from 0.
        bias: whether a positive bias is part of the sum.
    """

    name = "z_plus"
    operation = "alpha_beta"
    stabilizer: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        _number("stabilizer", self.stabilizer, 0)

    @property
    def parameters(self) -> list[float]:
        """``[1, 0, stabilizer]``."""
        return [1.0, 0.0, self.stabilizer]


@dataclass(frozen=True)
class WSquare(LayerRule):
    """The w^2 rule of input layers: ``R_i = sum_j w_ij^2 / stab(sum_i w_ij^2 + b_j^2) R_j``.

    Args:
        stabilizer: keeps denominators from 0.
        bias: whether the bias is part of the sum.
    """

    name = "w_square"
    stabilizer: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        _number("stabilizer", self.stabilizer, 0)


@dataclass(frozen=True)
class Flat(LayerRule):
    """The flat rule of input layers: each output shares equally among the inputs it reads.

    Args:
        stabilizer: keeps denominators from 0.
    """

    name = "flat"
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        _number("stabilizer", self.stabilizer, 0)


@dataclass(frozen=True)
class ZBox(LayerRule):
    """The z-box rule of input layers, see :func:`rapkernels.reference.relprop_zbox_conv`.

    Args:
        low: the smallest value that the layer's inputs can take; None for each sample's own.
        high: the largest, likewise.
        stabilizer: keeps denominators from 0.
    """

    name = "z_box"
    low: float | None = None
    high: float | None = None
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        _number("stabilizer", self.stabilizer, 0)
        if (self.low is None) != (self.high is None):
            raise ArgumentError(
                f"low and high must be given both or neither, got {self.low} and {self.high}"
            )
        if self.low is not None and self.high is not None:
            _number("low", self.low)
            _number("high", self.high)
            if self.low > self.high:
                raise ArgumentError(f"low must not be above high, got {self.low} and {self.high}")


@dataclass(frozen=True, eq=False)
class Composite:
    """Which layer gets which rule.

    The most specific rule wins: that of ``nodes``, then of the first and the last layer, then of an
    operation, then of the kind of layer. ReLU and its like pass relevance, max pools give it to the
    winner, averages and sums share it in proportion (the z-rule with the stabilizer).

    Args:
        conv: rule of convolutions.
        linear: rule of linear layers.
        first: rule of the first convolution or linear layer from the input, None for no exception.
        last: rule of the last linear layer, None for no exception.
        operations: rules by the name of an operation, as in "aten.conv2d.default".
        nodes: rules for parts of one model: by the name of a node, as ``plan`` shows it, by the
            path of a module, for all layers in it, or by a pattern of such paths, as in
            "blocks.*.conv1" (:mod:`fnmatch`: ``*`` stands for anything, dots included). Of several
            that name a layer the name of the node wins, then the path of the innermost module, then
            the first pattern. Each must name a layer: a key that names none is an error at the
            first call.
        stabilizer: keeps averages and sums from 0 where they divide.

    Raises:
        ArgumentTypeError: something else than a rule is given, or a key that is no string.
        ArgumentError: the stabilizer is negative or not finite.
    """

    conv: LayerRule = Epsilon()
    linear: LayerRule = Epsilon()
    first: LayerRule | None = None
    last: LayerRule | None = None
    operations: Mapping[str, LayerRule] = field(default_factory=dict)
    nodes: Mapping[str, LayerRule] = field(default_factory=dict)
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        _number("stabilizer", self.stabilizer, 0)
        given: dict[str, Any] = {"conv": self.conv, "linear": self.linear}
        given |= {
            name: rule
            for name, rule in (("first", self.first), ("last", self.last))
            if rule is not None
        }
        for name in ("operations", "nodes"):
            mapping = getattr(self, name)
            if not isinstance(mapping, Mapping):
                raise ArgumentTypeError(
                    f"{name} must be a dict of rules, got {type(mapping).__name__}"
                )
            for key in mapping:
                if not isinstance(key, str):
                    raise ArgumentTypeError(
                        f"{name} must have strings as keys, got {type(key).__name__}"
                    )
            given |= {f"{name}[{key!r}]": rule for key, rule in mapping.items()}
            object.__setattr__(self, name, dict(mapping))
        for name, rule in given.items():
            if not isinstance(rule, LayerRule):
                raise ArgumentTypeError(
                    f"{name} must be a rule such as rapkernels.composites.Epsilon(), "
                    f"got {type(rule).__name__}"
                )

    # Programs are kept by their composite. That of dicts would leave the order of patterns out.
    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Composite) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        operations = frozenset(self.operations.items())
        rules = (self.conv, self.linear, self.first, self.last, operations)
        return *rules, tuple(self.nodes.items()), self.stabilizer

    def check(self, graph: Graph, families: Mapping[str, str]) -> None:
        """Raise ArgumentError for a key of ``nodes`` that names no layer of a graph.

        Args:
            graph: the graph.
            families: activation node -> family of its rule.
        """
        layers = [graph.nodes[name] for name, family in families.items() if family in _FAMILIES]
        check_all_name(
            self.nodes,
            layers,
            modules_around,
            "nodes of the composite must name convolutions or linear layers, modules that have "
            "some, or patterns of their paths",
        )

    def rule(self, node: Node, family: Family, role: str) -> LayerRule:
        """The rule of a layer.

        Args:
            node: the layer.
            family: "conv" or "linear".
            role: "input" for a first layer, "output" for the last one.
        """
        chosen = choose(node, self.nodes, modules_around)
        if chosen is not None:
            return chosen
        if role == "input" and self.first is not None:
            return self.first
        if role == "output" and self.last is not None:
            return self.last
        return self.operations.get(node.operation, self.conv if family == "conv" else self.linear)


def EpsilonPlus(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:  # noqa: N802
    """z+ in convolutions, epsilon in linear layers."""
    return Composite(ZPlus(stabilizer), Epsilon(epsilon), stabilizer=stabilizer)


def EpsilonPlusFlat(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:  # noqa: N802
    """z+ in convolutions, epsilon in linear layers, flat in the first layer."""
    return Composite(
        ZPlus(stabilizer), Epsilon(epsilon), first=Flat(stabilizer), stabilizer=stabilizer
    )


def EpsilonAlpha2Beta1(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:  # noqa: N802
    """alpha-beta with 2 and 1 in convolutions, epsilon in linear layers."""
    return Composite(AlphaBeta(2.0, 1.0, stabilizer), Epsilon(epsilon), stabilizer=stabilizer)


def EpsilonAlpha2Beta1Flat(  # noqa: N802
    epsilon: float = 1e-6, stabilizer: float = 1e-6
) -> Composite:
    """alpha-beta with 2 and 1 in convolutions, epsilon in linear layers, flat in the first."""
    return Composite(
        AlphaBeta(2.0, 1.0, stabilizer),
        Epsilon(epsilon),
        first=Flat(stabilizer),
        stabilizer=stabilizer,
    )


def EpsilonGammaBox(  # noqa: N802
    low: float | None = None,
    high: float | None = None,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    stabilizer: float = 1e-6,
) -> Composite:
    """Gamma in convolutions, epsilon in linear layers, z-box in the first layer."""
    return Composite(
        Gamma(gamma, stabilizer),
        Epsilon(epsilon),
        first=ZBox(low, high, stabilizer),
        stabilizer=stabilizer,
    )


def _gradient_times_input() -> Composite:
    return Composite(GradientTimesInput(), GradientTimesInput(), stabilizer=0.0)


COMPOSITES: dict[str, Callable[[], Composite]] = {
    "EpsilonPlus": EpsilonPlus,
    "EpsilonPlusFlat": EpsilonPlusFlat,
    "EpsilonAlpha2Beta1": EpsilonAlpha2Beta1,
    "EpsilonAlpha2Beta1Flat": EpsilonAlpha2Beta1Flat,
    "EpsilonGammaBox": EpsilonGammaBox,
    "GradientTimesInput": _gradient_times_input,
}
