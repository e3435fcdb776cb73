"""Which tensor of what a model returns is explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

from torch import Tensor

from rapkernels.errors import ArgumentError, ArgumentTypeError

Output: TypeAlias = int | str | tuple[int | str, ...] | None
OutputPath: TypeAlias = tuple[int | str, ...]


def read_output(output: Any) -> OutputPath:
    """The path that ``output`` stands for; empty for None.

    Raises:
        ArgumentTypeError: it is no int, string, or tuple of them.
    """
    if output is None:
        return ()
    parts = output if isinstance(output, tuple) else (output,)
    if not all(isinstance(part, int | str) and not isinstance(part, bool) for part in parts):
        raise ArgumentTypeError(
            "output must be a position, a name, a tuple of them or None, got "
            f"{output!r} ({type(output).__name__})"
        )
    return parts


def select_output(returned: Any, path: OutputPath, model: str) -> Tensor:
    """The one tensor at a path of what a model returned.

    A string with dots that is no key itself stands for the parts between them.

    Args:
        returned: tensors in tuples, lists, named tuples, mappings and dataclasses.
        path: from :func:`read_output`.
        model: the model's name, for messages.

    Raises:
        ArgumentError: there is no such place, or not exactly one tensor; the message lists the
            places of tensors.
    """
    if path and isinstance(returned, Tensor):
        raise ArgumentError(
            f"output must be None, since {model} returns one tensor, got {_shown(path)}"
        )
    if not any(True for _ in _tensors(returned)):
        raise ArgumentError(
            f"model must return a tensor, but {model} returns {type(returned).__name__} without any"
        )
    value = returned
    for part in path:
        found = _descend(value, part)
        if found is None:
            raise ArgumentError(
                f"output must name what {model} returns, got {_shown(path)}: choose "
                f"{_choices(returned)}"
            )
        (value,) = found
    places = list(_tensors(value))
    if len(places) == 1:
        return places[0][1]
    if path:
        raise ArgumentError(
            f"output must name one tensor of what {model} returns, got {_shown(path)} with "
            f"{len(places)}: choose {_choices(returned)}"
        )
    raise ArgumentError(
        f"model must return exactly one tensor where output is None, but {model} returns "
        f"{len(places)}: choose {_choices(returned)}"
    )


def _descend(value: Any, part: int | str) -> tuple[Any] | None:
    """The child of a name or position, in a tuple; None where there is none."""
    children = _children(value)
    if part in children:
        return (children[part],)
    if isinstance(value, tuple | list):
        position = int(part) if isinstance(part, str) and part.lstrip("-").isdigit() else part
        if isinstance(position, int) and -len(value) <= position < len(value):
            return (value[position],)
    if isinstance(part, str) and "." in part:
        for one in part.split("."):
            found = _descend(value, one)
            if found is None:
                return None
            (value,) = found
        return (value,)
    return None


def _children(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or range(len(value))
        return dict(zip(names, value, strict=True))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return {}


def _tensors(value: Any, path: OutputPath = ()) -> Iterator[tuple[OutputPath, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    for name, child in _children(value).items():
        yield from _tensors(child, (*path, name))


def _choices(returned: Any) -> str:
    """How to ask for each tensor."""
    listed = [f"output={_shown(path)}" for path, _ in _tensors(returned) if path]
    return " or ".join(part for part in (", ".join(listed[:-1]), *listed[-1:]) if part)


def _shown(path: OutputPath) -> str:
    if len(path) == 1:
        return repr(path[0])
    if all(isinstance(part, str) and part and "." not in part for part in path):
        return repr(".".join(map(str, path)))
    return repr(path)
