"""A call of fixed shapes as a CUDA graph: :meth:`rapkernels.explainer.Explainer.capture`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.inputs import Inputs, Several, read_inputs

# Calls before the capture, in which libraries choose their algorithms and take their workspaces.
_WARM_UP = 3


class Captured:
    """Repeats a call without the host's part in it; made by ``explainer.capture(x, target)``.

    The kernels of one call, with the memory that they used, wait as a CUDA graph: a replay copies
    the input in, launches them all at once and copies the result out. The model's parameters are
    read where they were, so that changes in place count, and those that are put in the place of
    others do not. Values are not checked. One thread at a time may use it.

    Args:
        model: the model that the call explains.
        call: ``(inputs, target) -> relevance``, what is captured.
        x: as for :meth:`~rapkernels.explainer.Explainer.attribute`, on a CUDA device.
        target: as there; a tensor can be replaced in each replay.

    Raises:
        ArgumentError: ``x`` is not on a CUDA device, or its batch is empty.
        Others: as the call.
    """

    def __init__(
        self, model: nn.Module, call: Callable[[Any, Any], Any], x: Tensor | Several, target: Any
    ) -> None:
        inputs = read_inputs(model, x)
        if inputs.device.type != "cuda":
            raise ArgumentError(
                f"x must be on a CUDA device to be captured, got one on {inputs.device}: move the "
                "model and x there, or call attribute, which needs no capture"
            )
        if inputs.samples == 0:
            raise ArgumentError("x must hold at least one sample to be captured, got none")
        self._model = model
        # Copies that keep their addresses.
        self._inputs = inputs.map(lambda tensor: tensor.detach().clone())
        self._target = target.to(inputs.device).clone() if isinstance(target, Tensor) else target
        given = self._inputs
        # With the checks of values, once.
        call(given, self._target)
        with torch.cuda.device(inputs.device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    call(given, self._target)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = call(given, self._target)

    def __call__(self, x: Tensor | Several, target: Tensor | None = None) -> Any:
        """Return what the captured call returns for other values.

        Args:
            x: of the shapes, dtypes and device of the capture's; values are not checked.
            target: ``(N,)`` as the capture's, where that was a tensor; None for its values.

        Returns:
            As the captured call, in memory of its own.

        Raises:
            ArgumentError, ArgumentTypeError: ``x`` or ``target`` is not as that of the capture.
        """
        inputs = Inputs.of(self._model, x)
        if (inputs.samples, inputs.key) != (self._inputs.samples, self._inputs.key):
            raise ArgumentError(
                f"x must be as it was captured, {self._inputs.shapes()}, in dtype and device too, "
                f"got {inputs.shapes()}"
            )
        if target is not None:
            self._set_target(target)
        with torch.no_grad(), torch.cuda.device(inputs.device):
            for own, given in zip(self._inputs.tensors, inputs.tensors, strict=True):
                own.copy_(given.detach())
            self._graph.replay()
            return _copied(self._result)

    def _set_target(self, target: Tensor) -> None:
        if not isinstance(self._target, Tensor):
            raise ArgumentError(
                f"target must be a tensor in capture to be replaced in a replay, got "
                f"{self._target!r} there"
            )
        if not isinstance(target, Tensor):
            raise ArgumentTypeError(f"target must be a tensor, got {type(target).__name__}")
        if target.shape != self._target.shape:
            raise ArgumentError(
                f"target must have the shape of the capture's, {list(self._target.shape)}, got "
                f"{list(target.shape)}"
            )
        self._target.copy_(target)


def _copied(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, dict):
        return {key: _copied(value) for key, value in result.items()}
    if isinstance(result, tuple):
        return tuple(map(_copied, result))
    return result
