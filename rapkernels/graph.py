"""The graph of a model: operations on named values, free of in-place writes and of torch.fx."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Kind = Literal["activation", "constant"]


class Expression(Protocol):
    """A size that depends on the batch size (a sympy expression)."""

    def subs(self, values: dict[Any, int]) -> Any:
        """Put numbers in for symbols."""


Dimension: TypeAlias = int | Expression


class Ref(NamedTuple):
    """Stands for the value of a node, a parameter or an input in a node's arguments."""

    name: str


def map_refs(value: Any, replace: Callable[[str], Any]) -> Any:
    """Rebuild nested arguments with every :class:`Ref` replaced by ``replace(ref.name)``."""
    if isinstance(value, Ref):
        return replace(value.name)
    if isinstance(value, list | tuple):
        return type(value)(map_refs(item, replace) for item in value)
    if isinstance(value, dict):
        return {key: map_refs(item, replace) for key, item in value.items()}
    if isinstance(value, slice):
        parts = (map_refs(part, replace) for part in (value.start, value.stop, value.step))
        return slice(*parts)
    return value


def refs(value: Any) -> Iterator[str]:
    """The names that nested arguments refer to, in order and with repetitions."""
    names: list[str] = []
    map_refs(value, names.append)
    yield from names


def bound_refs(template: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of each :class:`Ref` in nested arguments, given the same arguments resolved."""
    if isinstance(template, Ref):
        yield template.name, values
    elif isinstance(template, list | tuple):
        for part, value in zip(template, values, strict=False):
            yield from bound_refs(part, value)
    elif isinstance(template, dict):
        for key, part in template.items():
            yield from bound_refs(part, values[key])


class Template:
    """Arguments to be filled many times: where their :class:`Ref` are is found once."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self._arguments = arguments
        self._direct: list[tuple[int, str]] = []
        self._nested: list[int] = []
        for position, argument in enumerate(arguments):
            if isinstance(argument, Ref):
                self._direct.append((position, argument.name))
            elif any(refs(argument)):
                self._nested.append(position)

    def fill(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments with a value for each :class:`Ref`; constants are the same objects."""
        filled = list(self._arguments)
        for position, name in self._direct:
            filled[position] = values[name]
        for position in self._nested:
            filled[position] = map_refs(filled[position], values.__getitem__)
        return tuple(filled)


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of the graph.

    Attributes:
        name: unique name of the node and of its value.
        operation: what it computes, as in "aten.conv2d.default".
        target: the callable.
        args: positional arguments; values of other nodes are :class:`Ref`.
        kwargs: keyword arguments, likewise.
        arguments: all arguments by the names of the operation's schema, defaults filled in.
        modules: paths of the modules whose forward it belongs to, outermost ("") first.
        kind: "activation" if the value is a floating-point tensor that depends on the values of an
            explained input, else "constant".
        shape: shape of the value; a dimension that depends on the batch size is an expression.
        index: which element of the operation's result the value is, None for the whole result.
    """

    name: str
    operation: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: dict[str, Any]
    modules: tuple[str, ...]
    kind: Kind
    shape: tuple[Dimension, ...]
    index: int | None = None

    @property
    def module(self) -> str:
        """Path of the innermost module that the operation belongs to."""
        return self.modules[-1] if self.modules else ""

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the operation."""
        result = self.target(*args, **kwargs)
        return result if self.index is None else result[self.index]

    def run(self, values: Mapping[str, Any]) -> Any:
        """Run the operation with a value for each :class:`Ref` in its arguments."""
        args, kwargs = self.bind(values)
        return self.call(*args, **kwargs)

    def bind(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with a value for each :class:`Ref` in them."""
        args, kwargs = self._templates
        filled = dict(zip(self.kwargs, kwargs.fill(values), strict=True)) if self.kwargs else {}
        return args.fill(values), filled

    @cached_property
    def _templates(self) -> tuple[Template, Template]:
        return Template(self.args), Template(tuple(self.kwargs.values()))


@dataclass(frozen=True, eq=False)
class Graph:
    """Operations in the order of execution.

    Attributes:
        nodes: by name, in order.
        inputs: name -> kind of each tensor that the model takes, in their order; the constants
            among them are known at each call only.
        output: name of the value that the model returns.
        attributes: name -> path of the parameter, buffer or tensor attribute of the module.
        constants: name -> tensor that the export lifted out of the module's code.
        batch: the symbol of the batch size in shapes.
        shapes: shapes of the inputs, the attributes and the constants.
        fixed_batch: the batch size that the export fixed; None where the graph holds for any.
        unplaced: values of such an export where it is not known which dimension is the batch.
    """

    nodes: dict[str, Node]
    inputs: dict[str, Kind]
    output: str
    attributes: dict[str, str]
    constants: dict[str, Any]
    batch: Expression | None
    shapes: dict[str, tuple[Dimension, ...]]
    fixed_batch: int | None = None
    unplaced: frozenset[str] = frozenset()
    users: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        users: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for name in dict.fromkeys(refs((node.args, node.kwargs))):
                users.setdefault(name, []).append(node.name)
        object.__setattr__(self, "users", users)

    def is_activation(self, name: str) -> bool:
        """Whether a name stands for an explained input or a value that depends on its values."""
        if name in self.inputs:
            return self.inputs[name] == "activation"
        return name in self.nodes and self.nodes[name].kind == "activation"

    @property
    def explained(self) -> list[str]:
        """The names of the inputs that relevance goes to."""
        return [name for name, kind in self.inputs.items() if kind == "activation"]

    def activations(self, node: Node) -> tuple[str, ...]:
        """The activations that a node reads, in the order of its arguments, with repetitions."""
        return tuple(name for name in refs((node.args, node.kwargs)) if self.is_activation(name))

    def only_user(self, name: str) -> Node | None:
        """The node that alone reads a value, None if others or the caller read it too."""
        users = self.users.get(name, [])
        return self.nodes[users[0]] if len(users) == 1 and name != self.output else None

    def ancestors(self, name: str) -> set[str]:
        """The nodes that a value is computed by, its own among them."""
        found: set[str] = set()
        pending = [name]
        while pending:
            name = pending.pop()
            if name in self.nodes and name not in found:
                found.add(name)
                pending.extend(refs((self.nodes[name].args, self.nodes[name].kwargs)))
        return found

    def shape_of(self, name: str) -> tuple[Dimension, ...]:
        """Shape of a value."""
        return self.nodes[name].shape if name in self.nodes else self.shapes[name]

    def batch_dim(self, name: str) -> int:
        """The dimension of a value that is the batch; 0 where it is part of that, or unknown."""
        if self.leads_with_batch(name):
            return 0
        found = [dim for dim, size in enumerate(self.shape_of(name)) if size == self.batch]
        return found[0] if len(found) == 1 else 0

    def leads_with_batch(self, name: str) -> bool:
        """Whether each entry of a value's first dimension belongs to one sample."""
        shape = self.shape_of(name)
        if not shape:
            return True
        # A size in proportion to the batch is nothing for an empty one.
        return self.sized(shape[:1], 0) == (0,)

    def sized(self, shape: tuple[Dimension, ...], samples: int) -> tuple[int, ...]:
        """A shape with the batch size put in."""
        return tuple(
            dim if isinstance(dim, int) else int(dim.subs({self.batch: samples})) for dim in shape
        )

    def values(self, module: torch.nn.Module) -> dict[str, Any]:
        """Look up the parameters, buffers and constants, as they are in the module right now."""
        found: dict[str, Any] = dict(self.constants)
        for parts, held in self._owners.items():
            owner: Any = module
            for part in parts:
                owner = getattr(owner, part)
            for name, attribute in held:
                tensor = getattr(owner, attribute)
                found[name] = tensor.detach() if isinstance(tensor, Tensor) else tensor
        return found

    @cached_property
    def _owners(self) -> dict[tuple[str, ...], list[tuple[str, str]]]:
        """Path of a module -> (name, attribute) of what it holds."""
        owners: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for name, path in self.attributes.items():
            *parts, attribute = path.split(".")
            owners.setdefault(tuple(parts), []).append((name, attribute))
        return owners


def bind_arguments(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by the names of the operation's schema; empty for what has no schema."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return {}
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound
