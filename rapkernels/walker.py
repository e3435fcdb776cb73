"""Runs a program forward, then sends relevance back through it, freeing as it goes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from rapkernels.graph import Ref, refs
from rapkernels.program import Program, Step
from rapkernels.relevance import Relevance
from rapkernels.rules.base import Context
from rapkernels.workspace import Workspace

Bounds = tuple[Tensor, Tensor]
Tensors = Sequence[Tensor]
Phase: TypeAlias = Literal["forward", "backward"]
_UNTIMED = nullcontext()


class Observer(Protocol):
    """Sees what a walk does, for reports."""

    def timed(self, phase: Phase, step: Step) -> AbstractContextManager[None]:
        """Surrounds the work of a step in one direction."""

    def went_back(
        self,
        step: Step,
        context: Context,
        relevance: Relevance,
        states: Sequence[Relevance | None],
    ) -> None:
        """Is called after each backward step, with what arrived and what was handed on."""


class Walk:
    """One call: holds what the forward saved until the backward has used it.

    Args:
        program: what to run.
        values: parameters and constants by name, from :meth:`rapkernels.graph.Graph.values`.
        ops: the module of relevance operations.
        observer: sees each step.
        workspace: memory that it may use and leave; None for what it asks the system for.

    Attributes:
        program: what it runs.
        value: after a forward, the value where relevance starts.
    """

    value: Tensor
    _leaf: Tensor

    def __init__(
        self,
        program: Program,
        values: Mapping[str, Any],
        ops: ModuleType,
        observer: Observer | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self.program = program
        self._values = dict(values)
        self._ops = ops
        self._observer = observer
        self._workspace = workspace
        self._contexts: dict[str, Context] = {}

    def forward(self, inputs: Tensors, bounds: Bounds | None = None) -> Tensor:
        """Return the model's output and keep what the rules need.

        Args:
            inputs: all inputs, in the order of ``graph.inputs``.
            bounds: lowest and highest values of a single input, of its shape, for the input layers;
                None for each sample's own.

        Returns:
            The output. It can be differentiated with respect to the value where relevance starts:
            see :meth:`gradient`.
        """
        graph, end = self.program.graph, self.program.end
        live = self._run_head(inputs, bounds)
        self.value = live[end]
        # Autograd cannot keep inference tensors, which the caller's may be.
        live = {name: _copied_from_inference(value) for name, value in live.items()}
        with torch.enable_grad():
            live[end] = self._leaf = live[end].detach().requires_grad_()
            for step in self.program.steps[self.program.head :]:
                with self._timed("forward", step):
                    live[step.node.name] = _run(step, Context(ops=self._ops), live)
                for freed in step.frees:
                    live.pop(freed, None)
        output: Tensor = live[graph.output]
        return output

    def forward_to_start(self, inputs: Tensors, bounds: Bounds | None = None) -> Tensor:
        """Return the value where relevance starts, without what comes after it."""
        self.value = self._run_head(inputs, bounds)[self.program.end]
        return self.value

    def gradient(self, score: Tensor) -> Tensor:
        """The gradient of a sum of outputs with respect to the value where relevance starts.

        Args:
            score: a scalar computed from what :meth:`forward` returned; zero gradients are
                returned where it does not depend on the value.
        """
        if not score.requires_grad:
            return torch.zeros_like(self.value)
        (gradient,) = torch.autograd.grad(
            score, self._leaf, retain_graph=True, materialize_grads=True
        )
        return gradient

    def backward(
        self, start: Tensor, exposed: Collection[str] = (), one_hot: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Send relevance to the inputs.

        Args:
            start: ``(T * N, ...)``, the relevance where it starts, for T targets, target-major.
            exposed: names of nodes whose relevance is wanted too.
            one_hot: whether one entry of each sample alone has relevance.

        Returns:
            The relevance of the inputs and that of the exposed nodes, of those that it arrives at,
            with the pending shifts applied.
        """
        graph, end = self.program.graph, self.program.end
        targets = start.shape[0] // self.value.shape[0]
        arrived: dict[str, Relevance] = {end: Relevance(start)}
        layers: dict[str, Tensor] = {}
        with self._with_workspace():
            for step in reversed(self.program.steps):
                name = step.node.name
                context = self._contexts.pop(name, None)
                relevance = arrived.pop(name, None)
                if step.rule is None or context is None or relevance is None:
                    continue
                context.targets, context.one_hot = targets, one_hot
                if name in exposed:
                    layers[name] = step.rule.at_output(self._materialise(relevance))
                with self._timed("backward", step):
                    context.saved = tuple(map(self._found, context.saved))
                    states = step.rule.propagate(context, relevance)
                    for source, state in zip(step.inputs, states, strict=True):
                        if state is not None:
                            arrived[source] = self._merge(arrived.get(source), state)
                if self._observer is not None:
                    self._observer.went_back(step, context, relevance, states)
        found = {
            name: self._materialise(arrived[name]) for name in graph.explained if name in arrived
        }
        return found, layers

    def _with_workspace(self) -> AbstractContextManager[None]:
        return nullcontext() if self._workspace is None else self._workspace.opened()

    def _run_head(self, inputs: Tensors, bounds: Bounds | None) -> dict[str, Any]:
        with self._with_workspace():
            return self._run_steps_of_head(inputs, bounds)

    def _run_steps_of_head(self, inputs: Tensors, bounds: Bounds | None) -> dict[str, Any]:
        graph = self.program.graph
        mapped = {} if bounds is None else self._map_bounds(bounds)
        live: dict[str, Any] = {**self._values, **dict(zip(graph.inputs, inputs, strict=True))}
        for step in self.program.steps[: self.program.head]:
            name = step.node.name
            context = Context(
                ops=self._ops,
                operands=step.operands.fill(live),
                bounds=mapped.get(name),
                wants_absorbed=self._observer is not None,
            )
            with self._timed("forward", step):
                live[name] = _run(step, context, live)
            if step.rule is not None:
                context.saved = self._without_remade(step, context.saved, live)
                self._contexts[name] = context
            for freed in step.frees:
                del live[freed]
        return live

    def _without_remade(
        self, step: Step, saved: tuple[Any, ...], live: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """What a step saved, with a name for each input that is computed again."""
        names = {id(live[name]): name for name in step.inputs if name in self.program.again}
        if not names:
            return saved
        return tuple(Ref(names[id(value)]) if id(value) in names else value for value in saved)

    def _found(self, saved: Any) -> Any:
        return self._remade(saved.name) if isinstance(saved, Ref) else saved

    def _remade(self, name: str) -> Tensor:
        step = self.program.again[name]
        rule = step.rule
        assert rule is not None
        if rule.again == "saved":
            # Steps go back in reverse, so that those before this one still have what they saved.
            return rule.remake(self._contexts[name])
        inputs = {source: self._remade(source) for source in set(step.inputs)}
        value: Tensor = _run(step, Context(ops=self._ops), ChainMap(inputs, self._values))
        return value

    def _timed(self, phase: Phase, step: Step) -> AbstractContextManager[None]:
        return _UNTIMED if self._observer is None else self._observer.timed(phase, step)

    def _materialise(self, relevance: Relevance) -> Tensor:
        return Context(ops=self._ops).materialise(relevance)

    def _merge(self, known: Relevance | None, state: Relevance) -> Relevance:
        if known is None:
            return state
        values, scale = self._ops.merge(*known, *state)
        return Relevance(values, None, scale)

    def _map_bounds(self, bounds: Bounds) -> dict[str, Bounds]:
        """What the operations before each input layer make of the bounds of the only input."""
        graph, roles = self.program.graph, self.program.roles
        (only,) = graph.inputs
        ends: list[dict[str, Any]] = [{**self._values, only: bound} for bound in bounds]
        mapped: dict[str, Bounds] = {}
        for step in self.program.steps:
            name = step.node.name
            if name in roles.inputs:
                low, high = (end[step.inputs[0]] for end in ends)
                mapped[name] = torch.minimum(low, high), torch.maximum(low, high)
            elif name in roles.prefix or step.rule is None:
                for end in ends:
                    if all(source in end for source in refs((step.node.args, step.node.kwargs))):
                        end[name] = _run(step, Context(ops=self._ops), end)
        return mapped


def _copied_from_inference(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _run(step: Step, context: Context, live: Mapping[str, Any]) -> Any:
    if step.rule is None:
        return step.node.run(live)
    args, kwargs = step.node.bind(live)
    return step.rule.forward(context, *args, **kwargs)
