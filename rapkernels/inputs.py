"""What a model takes in one call: one tensor, or several by position or by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rapkernels import checks
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.findings import Findings

Several: TypeAlias = Mapping[str, Tensor] | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tensors of one call, and how the model takes them.

    Attributes:
        tensors: in the order of the caller's container.
        form: "tensor" for one alone, "tuple" for positional arguments, "keywords" for keyword
            arguments, "dict" for one positional argument that is a dict.
        keys: the keys of a dict.
    """

    tensors: tuple[Tensor, ...]
    form: Literal["tensor", "tuple", "keywords", "dict"] = "tensor"
    keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, x: Any) -> Inputs:
        """What the caller gives as ``x``, unchecked but for its form.

        Raises:
            ArgumentTypeError: it is neither a tensor nor a dict, tuple or list of tensors.
            ArgumentError: it holds no tensor.
        """
        if isinstance(x, Inputs):
            return x
        if isinstance(x, Mapping):
            made = cls(tuple(x.values()), "keywords" if _by_name(model, x) else "dict", tuple(x))
        elif isinstance(x, tuple | list):
            made = cls(tuple(x), "tuple")
        else:
            made = cls((x,))
        for name, tensor in made.named():
            if not isinstance(tensor, Tensor):
                kinds = "" if made.form != "tensor" else ", or a dict or tuple of them"
                got = type(tensor).__name__
                raise ArgumentTypeError(f"{name} must be a torch.Tensor{kinds}, got {got}")
        if not made.tensors:
            raise ArgumentError("x must hold at least one tensor, got none")
        return made

    @property
    def device(self) -> torch.device:
        """Where the first tensor is; :func:`read_inputs` checks that all are there."""
        return self.tensors[0].device

    @property
    def samples(self) -> int:
        """The batch size N."""
        return self.tensors[0].shape[0]

    @property
    def key(self) -> tuple[Any, ...]:
        """What an export depends on, beside the batch size."""
        tensors = tuple((tuple(t.shape[1:]), t.dtype, t.device) for t in self.tensors)
        return self.form, self.keys, tensors

    @property
    def explained(self) -> tuple[Tensor, ...]:
        """The tensors that relevance goes to; the others are constants of the call."""
        return tuple(tensor for tensor in self.tensors if tensor.is_floating_point())

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors and what messages call them."""
        places: Sequence[Any] = self.keys or range(len(self.tensors))
        for place, tensor in zip(places, self.tensors, strict=True):
            yield "x" if self.form == "tensor" else f"x[{place!r}]", tensor

    def shapes(self) -> str:
        """The shapes, for messages."""
        listed = [(name, list(tensor.shape)) for name, tensor in self.named()]
        if self.form == "tensor":
            return f"x of shape {listed[0][1]}"
        return "x of shapes " + ", ".join(f"{shape} ({name})" for name, shape in listed)

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor replaced."""
        return replace(self, tensors=tuple(change(tensor) for tensor in self.tensors))

    def part(self, samples: slice) -> Inputs:
        """Some of the samples."""
        return self.map(lambda tensor: tensor[samples])

    def zeros(self, samples: int) -> Inputs:
        """Zeros for a batch size, otherwise alike."""
        return self.map(lambda tensor: tensor.new_zeros((samples, *tensor.shape[1:])))

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the model, for these tensors in the same order."""
        if self.form == "keywords":
            return (), dict(zip(self.keys, tensors, strict=True))
        if self.form == "dict":
            return (dict(zip(self.keys, tensors, strict=True)),), {}
        return tuple(tensors), {}

    def packed(self, maps: Sequence[Tensor]) -> Any:
        """Maps of the explained tensors as the caller gets them.

        One tensor for one; a tuple with None for what is not explained; a dict without it.
        """
        left = iter(maps)
        found = [next(left) if tensor.is_floating_point() else None for tensor in self.tensors]
        if self.form == "tensor":
            return found[0]
        if self.form == "tuple":
            return tuple(found)
        named = zip(self.keys, found, strict=True)
        return {key: relevance for key, relevance in named if relevance is not None}


def read_inputs(model: nn.Module, x: Any) -> Inputs:
    """What the caller gives as ``x``, checked but for its values.

    Raises:
        ArgumentError, ArgumentTypeError: it is nothing that the model could take.
    """
    inputs = Inputs.of(model, x)
    for name, tensor in inputs.named():
        if inputs.form == "tensor" or tensor.is_floating_point():
            checks.check_input(model, tensor, name)
        else:
            checks.check_constant_input(model, tensor, name)
    if not inputs.explained:
        raise ArgumentTypeError(
            "x must hold at least one tensor of a floating-point dtype, which alone are explained, "
            f"got {', '.join(str(t.dtype).removeprefix('torch.') for t in inputs.tensors)}"
        )
    sizes = [tensor.shape[0] for tensor in inputs.tensors]
    if len(set(sizes)) > 1:
        raise ArgumentError(f"x must hold tensors of one batch size, got {inputs.shapes()}")
    if len({tensor.device for tensor in inputs.tensors}) > 1:
        devices = ", ".join(str(tensor.device) for tensor in inputs.tensors)
        raise ArgumentError(f"x must hold tensors on one device, got {devices}")
    return inputs


def check_finite_inputs(inputs: Inputs, findings: Findings) -> None:
    """Find NaN and infinite entries.

    Raises:
        ArgumentError: there are some.
    """
    for name, tensor in inputs.named():
        if tensor.is_floating_point():
            checks.check_finite(tensor, findings, name)


def _by_name(model: nn.Module, keys: Mapping[Any, Any]) -> bool:
    """Whether a model takes each of these keys as a keyword argument."""
    if not all(isinstance(key, str) for key in keys):
        return False
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return True
    named = {
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return named.issuperset(keys)
