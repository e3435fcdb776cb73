"""A call run on meta tensors, which have shapes and no entries: what it would do, found out."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rapkernels import calls
from rapkernels.errors import RapError
from rapkernels.findings import Findings
from rapkernels.inputs import Inputs
from rapkernels.layouts import memory_format_of
from rapkernels.program import Program
from rapkernels.walker import Observer, Walk

META = torch.device("meta")


class DryRunError(Exception):
    """A program has an operation that meta tensors do not pass, such as one that reads values."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations of a dry run, and keeps what they make on meta.

    Attributes:
        last: name of the operation that ran last.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.last = "the first operation"

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self.last = str(function)
        # The device that the graph was exported for, or a new tensor's default.
        if any(argument.name == "device" for argument in function._schema.arguments):
            kwargs["device"] = META
        result = function(*args, **kwargs)
        if function is torch.ops.aten.convolution.default:
            result = _laid_out(result, *args[:2])
        self.saw(function, args, kwargs, result)
        return result

    def saw(self, function: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """Is called after each operation."""


def _without_entries(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def _laid_out(result: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """As convolutions of the devices lay out their results, and those on meta do not."""
    formats = {memory_format_of(x), memory_format_of(weight)} - {torch.contiguous_format}
    return result.contiguous(memory_format=formats.pop()) if formats else result


class DryRun:
    """A call on meta tensors, ready to run.

    Args:
        program: what it runs.
        values: parameters and constants by name.
        inputs: what the model takes, of which nothing is read.
        targets: T, the number of targets of each sample.
        masked: whether targets are entries of the output, as of a
            :class:`rapkernels.MaskedTarget`.

    Attributes:
        given: every tensor that it starts from.
    """

    def __init__(
        self,
        program: Program,
        values: Mapping[str, Any],
        inputs: Inputs,
        targets: int = 1,
        masked: bool = False,
    ) -> None:
        self._program = program
        self._device = inputs.device
        self._values = {
            name: _without_entries(value) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        self._inputs = inputs.map(_without_entries)
        samples = inputs.samples
        entries = calls.output_shape(program.graph, samples)[1:] if masked else ()
        kind = torch.bool if masked else torch.int64
        self._chosen = torch.empty((targets, samples, *entries), dtype=kind, device=META)
        known = [value for value in self._values.values() if isinstance(value, Tensor)]
        self.given = [*self._inputs.tensors, self._chosen, *known]

    def run(
        self,
        ops: ModuleType,
        begin: calls.Begin,
        watch: Watch,
        observer: Observer | None = None,
        bounded: bool = False,
    ) -> None:
        """Run it forward and back.

        Args:
            ops: the module of relevance operations.
            begin: makes the relevance that is sent back.
            watch: sees the operations.
            observer: sees the steps.
            bounded: whether bounds of the input are given.

        Raises:
            DryRunError: an operation of the program cannot be run without values.
        """
        only = self._inputs.tensors[0]
        with watch:
            walk = Walk(self._program, self._values, ops, observer)
            try:
                calls.run(
                    walk,
                    self._inputs,
                    self._chosen,
                    begin,
                    Findings(META),
                    (only, only) if bounded else None,
                    runs_on=self._device,
                )
            except RapError:
                raise
            except Exception as error:
                # Rules and operations are the user's and torch's: what they raise can be anything.
                raise DryRunError(f"{watch.last} raised {type(error).__name__}") from error
