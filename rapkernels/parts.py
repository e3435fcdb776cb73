"""A call in parts: some samples, and of one sample some targets, at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rapkernels import calls
from rapkernels.inputs import Inputs
from rapkernels.program import Program
from rapkernels.walker import Bounds

# The samples of a part of the batch -> what makes the relevance that is sent back for them.
BeginOf = Callable[[slice], calls.Begin]


class Part(NamedTuple):
    """Which samples and which targets of a call are done together."""

    samples: slice
    targets: slice


def parts_of(samples: int, targets: int, at_once: tuple[int, int]) -> Iterator[Part]:
    """The parts of a call, at most as large as fits at once and as equal in size as can be.

    Args:
        samples: the batch size N.
        targets: T, at least 1.
        at_once: how many samples and targets fit.
    """
    for own in _slices(samples, at_once[0]):
        for those in _slices(targets, at_once[1]):
            yield Part(own, those)


def _slices(count: int, at_once: int) -> Iterator[slice]:
    if count == 0:
        yield slice(0, 0)
        return
    number = -(-count // at_once)
    size = -(-count // number)
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


class Call(NamedTuple):
    """What the parts of one call share.

    Attributes:
        program: the program for the whole batch.
        inputs: what the model takes.
        chosen: target as in :class:`rapkernels.calls.Explained`; None for the predicted class.
        bounds: lowest and highest values of a single input, where there are any.
        begin: for the samples of a part, what makes the relevance that is sent back.
        nodes: path -> node of the layers whose relevance is wanted.
        with_layers: whether ``nodes`` are returned, be there none.
        many: whether results are ``(T, N, ...)``.
        reported: whether a report is wanted.
    """

    program: Program
    inputs: Inputs
    chosen: Tensor | None
    bounds: Bounds | None
    begin: BeginOf
    nodes: dict[str, str]
    with_layers: bool
    many: bool
    reported: bool

    @property
    def targets(self) -> int:
        """The number of targets of each sample."""
        return 1 if self.chosen is None else len(self.chosen)

    def chosen_of(self, part: Part) -> Tensor | None:
        """The targets of a part."""
        return None if self.chosen is None else self.chosen[part.targets, part.samples]

    def bounds_of(self, part: Part) -> Bounds | None:
        """The bounds of a part."""
        return self.bounds and (self.bounds[0][part.samples], self.bounds[1][part.samples])


class Whole:
    """Takes what the parts of a call return, and puts it together.

    Args:
        samples: the batch size N.
        targets: T where results are ``(T, N, ...)``, None where they are ``(N, ...)``.
    """

    def __init__(self, samples: int, targets: int | None) -> None:
        self._samples = samples
        self._targets = targets
        self._found: dict[Hashable, Tensor] = {}

    def put(self, part: Part, returned: Any) -> Any:
        """Copy what a part returned to its place, and return all that has come so far.

        Args:
            part: whose.
            returned: tensors ``(t, n, ...)`` or ``(n, ...)``, as the results, in lists, tuples and
                dicts that may hold None.
        """
        return self._put((), part, returned)

    def _put(self, place: tuple[Any, ...], part: Part, found: Any) -> Any:
        if isinstance(found, Tensor):
            return self._put_tensor(place, part, found)
        if isinstance(found, dict):
            return {name: self._put((*place, name), part, one) for name, one in found.items()}
        if isinstance(found, list | tuple):
            return type(found)(self._put((*place, i), part, one) for i, one in enumerate(found))
        return found

    def _put_tensor(self, key: Hashable, part: Part, found: Tensor) -> Tensor:
        if key not in self._found:
            leading = [self._samples] if self._targets is None else [self._targets, self._samples]
            shape = (*leading, *found.shape[len(leading) :])
            # The layout that the result would have in one piece.
            order = sorted(range(found.dim()), key=found.stride, reverse=True)
            self._found[key] = torch.empty_permuted(
                shape, order, dtype=found.dtype, device=found.device
            )
        whole = self._found[key]
        place = part.samples if self._targets is None else (part.targets, part.samples)
        whole[place].copy_(found)
        return whole
