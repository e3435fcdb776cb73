"""Graphs and programs of a module, kept as long as the module lives and is not changed."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rapkernels.capture import capture
from rapkernels.graph import Graph
from rapkernels.program import Program, compile_program
from rapkernels.rules.base import Method
from rapkernels.rules.registry import table_version

_CAPACITY = 32


class ProgramCache:
    """Programs of one module by input shape and method; safe to share between threads.

    Neither parameters nor the module itself are held.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._graphs: OrderedDict[tuple[Any, ...], Graph] = OrderedDict()
        self._programs: OrderedDict[tuple[Any, ...], Program] = OrderedDict()

    def graph(self, module: nn.Module, x: Tensor) -> Graph:
        """The graph for inputs like ``x``; exports the module if it must.

        Raises:
            ArgumentError, ExportError: see :func:`rapkernels.capture.capture`.
        """
        with self._lock:
            return self._graph(module, x)

    def program(
        self,
        module: nn.Module,
        x: Tensor,
        method: Method,
        end: Callable[[Graph], str | None] | None = None,
    ) -> Program:
        """The program for inputs like ``x``; exports the module if it must.

        Args:
            module: the module.
            x: an input.
            method: chooses the rules.
            end: finds the name of the value where relevance starts; None for the output.

        Raises:
            ArgumentError, ExportError: see :func:`rapkernels.capture.capture`.
            UnsupportedOperationError: see :func:`rapkernels.program.compile_program`.
            ArgumentError: ``end`` finds none.
        """
        with self._lock:
            graph = self._graph(module, x)
            # Graphs are compared by identity, and the key keeps this one alive.
            start = None if end is None else end(graph)
            compiled = graph, method, start, table_version()
            program = self._programs.get(compiled)
            if program is None:
                program = compile_program(graph, method, start)
                _put(self._programs, compiled, program)
            return program

    def has_graph(self, module: nn.Module, x: Tensor) -> bool:
        """Whether the module has been exported for inputs like ``x``."""
        with self._lock:
            return self._known(_key(module, x), x) is not None

    def _graph(self, module: nn.Module, x: Tensor) -> Graph:
        key = _key(module, x)
        graph = self._known(key, x)
        if graph is None:
            graph = capture(module, x)
            _put(self._graphs, key if graph.batch is not None else (*key, x.shape[0]), graph)
        return graph

    def _known(self, key: tuple[Any, ...], x: Tensor) -> Graph | None:
        return self._graphs.get(key) or self._graphs.get((*key, x.shape[0]))


def _key(module: nn.Module, x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape[1:]), x.dtype, x.device, fingerprint(module)


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


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """What an export depends on beside the input: structure and settings, not parameter values."""
    parts: list[Any] = []
    for path, child in module.named_modules(remove_duplicate=False):
        settings = tuple(
            (key, value)
            for key, value in vars(child).items()
            if isinstance(value, bool | int | float | str | None)
            or (isinstance(value, tuple) and all(isinstance(item, int) for item in value))
        )
        tensors = tuple(
            (key, tuple(tensor.shape), tensor.dtype, tensor.device)
            for held in (child._parameters, child._buffers)
            for key, tensor in held.items()
            if tensor is not None
        )
        hooks = (*child._forward_pre_hooks, *child._forward_hooks)
        parts.append((path, type(child), id(child), settings, tensors, hooks))
    return tuple(parts)
