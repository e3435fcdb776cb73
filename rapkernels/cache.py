"""Graphs and programs of a module, kept as long as the module lives and is not changed."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from rapkernels.capture import capture
from rapkernels.graph import Graph
from rapkernels.inputs import Inputs
from rapkernels.modules import named_modules
from rapkernels.outputs import OutputPath
from rapkernels.program import Program, compile_program
from rapkernels.rules.base import Method
from rapkernels.rules.registry import table_version
from rapkernels.workspace import Workspace

_CAPACITY = 32


class ProgramCache:
    """Programs of one module by input shape and method; safe to share between threads.

    Neither parameters nor the module itself are held.

    Attributes:
        workspace: memory that the calls for this module hand on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._graphs: OrderedDict[tuple[Any, ...], Graph] = OrderedDict()
        self._programs: OrderedDict[tuple[Any, ...], Program] = OrderedDict()
        self.workspace = Workspace()

    def graph(self, module: nn.Module, x: Any, output: OutputPath = ()) -> Graph:
        """The graph for inputs like ``x``, up to one output; exports the module if it must.

        Raises:
            ArgumentError, ExportError: see :func:`rapkernels.capture.capture`.
        """
        with self._lock:
            return self._graph(module, x, output)

    def program(
        self,
        module: nn.Module,
        x: Any,
        method: Method,
        end: Callable[[Graph], str | None] | None = None,
        output: OutputPath = (),
    ) -> Program:
        """The program for inputs like ``x``; exports the module if it must.

        Args:
            module: the module.
            x: an input, or :class:`~rapkernels.inputs.Inputs`.
            method: chooses the rules.
            end: finds the name of the value where relevance starts; None for the output.
            output: where the tensor is in what the module returns, see
                :func:`rapkernels.capture.capture`.

        Raises:
            ArgumentError, ExportError: see :func:`rapkernels.capture.capture`.
            UnsupportedOperationError: see :func:`rapkernels.program.compile_program`.
            ArgumentError: ``end`` finds none.
        """
        with self._lock:
            graph = self._graph(module, x, output)
            # Graphs are compared by identity, and the key keeps this one alive.
            start = None if end is None else end(graph)
            compiled = graph, method, start, table_version()
            program = self._programs.get(compiled)
            if program is None:
                program = compile_program(graph, method, start)
                _put(self._programs, compiled, program)
            return program

    def has_graph(self, module: nn.Module, x: Any, output: OutputPath = ()) -> bool:
        """Whether the module has been exported for inputs like ``x``."""
        with self._lock:
            inputs = Inputs.of(module, x)
            return self._known(_key(module, inputs, output), inputs.samples) is not None

    def _graph(self, module: nn.Module, x: Any, output: OutputPath) -> Graph:
        inputs = Inputs.of(module, x)
        key = _key(module, inputs, output)
        graph = self._known(key, inputs.samples)
        if graph is None:
            graph = capture(module, x, output)
            _put(self._graphs, key if graph.fixed_batch is None else (*key, inputs.samples), graph)
        return graph

    def _known(self, key: tuple[Any, ...], samples: int) -> Graph | None:
        return self._graphs.get(key) or self._graphs.get((*key, samples))


def _key(module: nn.Module, inputs: Inputs, output: OutputPath) -> tuple[Any, ...]:
    return inputs.key, output, fingerprint(module)


def _put(cache: OrderedDict[tuple[Any, ...], Any], key: tuple[Any, ...], value: Any) -> None:
    cache[key] = value
    if len(cache) > _CAPACITY:
        cache.popitem(last=False)


_caches: weakref.WeakKeyDictionary[nn.Module, ProgramCache] = weakref.WeakKeyDictionary()
_caches_lock = threading.Lock()


def cache_of(module: nn.Module) -> ProgramCache:
    """The one cache of a module, which dies with it."""
    with _caches_lock:
        return _caches.setdefault(module, ProgramCache())


# What every module has beside its settings.
_CONTAINERS = frozenset(
    name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set)
)
_PLAIN = (int, float, str, type(None))


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """What an export depends on beside the input: structure and settings, not parameter values."""
    parts: list[Any] = []
    for path, child in named_modules(module, remove_duplicate=False):
        settings: list[Any] = []
        for key, value in vars(child).items():
            if key not in _CONTAINERS and (isinstance(value, _PLAIN) or _is_of_ints(value)):
                settings += (key, value)
        tensors: list[Any] = []
        for held in (child._parameters, child._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    tensors += (key, tensor.shape, tensor.dtype, tensor.device)
        hooks = (*child._forward_pre_hooks, *child._forward_hooks)
        parts.append((path, type(child), id(child), tuple(settings), tuple(tensors), hooks))
    return tuple(parts)


def _is_of_ints(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, int) for item in value)
