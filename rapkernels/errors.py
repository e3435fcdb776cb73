"""Exceptions and warnings. Each message names the argument, what was needed and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class RapError(Exception):
    """Base of every error that rapkernels raises on purpose."""


class ArgumentError(RapError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class ArgumentTypeError(RapError, TypeError):
    """An argument has the wrong type."""


class TrainingModeError(RapError, RuntimeError):
    """The model is in train mode with layers that behave differently there."""


class ExportError(RapError, RuntimeError):
    """``torch.export`` cannot turn the model into a graph; the cause is chained."""


class NonFiniteOutputError(RapError, RuntimeError):
    """The model's output for a finite input has NaN or infinite entries."""


class BackendError(RapError, RuntimeError):
    """The asked backend is not there."""


class UnsupportedNode(NamedTuple):
    """One operation of the graph that has no rule."""

    node: str
    operation: str
    module: str
    reason: str


class UnsupportedOperationError(RapError, NotImplementedError):
    """The graph has operations without a rule; all of them are in ``nodes``."""

    def __init__(self, nodes: Sequence[UnsupportedNode]) -> None:
        self.nodes = tuple(nodes)
        lines = [
            f"  {node.node}: {node.operation} in module {node.module or '(root)'!r}: {node.reason}"
            for node in self.nodes
        ]
        first = self.nodes[0].operation if self.nodes else ""
        super().__init__(
            "the model has operations that relevance cannot be propagated through:\n"
            + "\n".join(lines)
            + f'\nregister a rule for each first, as in rapkernels.register_rule("{first}", rule), '
            'where rule is "identity", "structure" or a subclass of rapkernels.Rule, or give the '
            'explainer rules={"node or module path": rule}, or strict=False'
        )

    def __reduce__(self) -> tuple[type[UnsupportedOperationError], tuple[object, ...]]:
        return type(self), (self.nodes,)


class NonPositiveTargetWarning(UserWarning):
    """A target's logit is not positive: its map is the inverse of a positive class's map."""


class LinearisedWarning(UserWarning):
    """Operations without a rule are linearised, because the caller asked for ``strict=False``."""


class UnknownMemoryWarning(UserWarning):
    """What a call takes cannot be found before it runs, so that ``max_memory`` may not be kept."""


class BackendWarning(UserWarning):
    """The native operations are not there, the slow reference runs in their place."""
