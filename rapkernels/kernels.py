"""Which kernels hand relevance back in a call, found without running it: for ``plan``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map
from typing_extensions import override

from rapkernels import calls
from rapkernels.dry_run import DryRun, DryRunError, Watch
from rapkernels.inputs import Inputs
from rapkernels.program import Program, Step
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context
from rapkernels.walker import Phase

# What only moves relevance on or brings it into its true form.
_HELPERS = frozenset({"apply_shift", "merge"})


def find_kernels(
    program: Program,
    values: Mapping[str, Any],
    ops: ModuleType,
    inputs: Inputs,
    begin: calls.Begin,
) -> dict[str, str] | None:
    """The native operations of each node's way back, by the name of the node.

    Where an operation can run on several kernels, the one that would do its products follows in
    brackets: the ``*_kernel`` functions of csrc/registration.cpp.

    Args:
        program: what a call runs.
        values: parameters and constants by name.
        ops: the module of relevance operations.
        inputs: what the model takes, at least one sample; nothing of it is read.
        begin: makes the relevance that is sent back.

    Returns:
        Nodes without native operations are left out. None where an operation of the program cannot
        be run without values.
    """
    watch = _Kernels(inputs.device)
    try:
        DryRun(program, values, inputs).run(ops, begin, watch, watch.observer)
    except DryRunError:
        return None
    return {node: ", ".join(dict.fromkeys(found)) for node, found in watch.found.items()}


class _Kernels(Watch):  # type: ignore[no-untyped-call]
    """Notes the native operations of each step's way back.

    Args:
        device: where they would run.

    Attributes:
        found: node -> what it runs, in order.
        observer: tells the step.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.observer = _CurrentStep()
        self._device = device
        self._fake = FakeTensorMode()

    @override
    def saw(self, function: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        space, _, name = function._schema.name.partition("::")
        node = self.observer.node
        if node is None or not space.startswith("rapkernels") or name in _HELPERS:
            return
        asked = getattr(getattr(torch.ops, space), f"{name}_kernel", None)
        if asked is not None:
            with self._fake:
                name = f"{name} ({asked(*tree_map(self._on_device, args), **kwargs)})"
        self.found.setdefault(node, []).append(name)

    def _on_device(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=self._device
        )


class _CurrentStep:
    """Observes a walk: which node is on its way back.

    Attributes:
        node: its name, None while there is none.
    """

    node: str | None = None

    @contextmanager
    def timed(self, phase: Phase, step: Step) -> Iterator[None]:
        """Surrounds the work of a step in one direction."""
        self.node = step.node.name if phase == "backward" else None
        yield
        self.node = None

    def went_back(
        self,
        step: Step,
        context: Context,
        relevance: Relevance,
        states: Sequence[Relevance | None],
    ) -> None:
        """Nothing is read of what was handed on."""
