"""Checks of what the user gives: model, input, bounds, layers."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rapkernels import host
from rapkernels.errors import ArgumentError, ArgumentTypeError, TrainingModeError
from rapkernels.findings import Findings
from rapkernels.modules import named_modules, tensors_of

_DIFFERENT_IN_TRAINING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
)


def check_model(model: Any) -> None:
    """Raise ArgumentTypeError unless the model is a module."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_eval_mode(model: nn.Module) -> None:
    """Raise TrainingModeError if layers of the model behave as in training."""
    training = [
        f"{path or '(root)'} ({type(module).__name__})"
        for path, module in named_modules(model)
        if module.training and isinstance(module, _DIFFERENT_IN_TRAINING)
    ]
    if training:
        shown = ", ".join(training[:3]) + (", ..." if len(training) > 3 else "")
        raise TrainingModeError(
            "model must be in eval mode where it has BatchNorm or Dropout: call model.eval(); "
            f"{len(training)} such module(s) are in train mode: {shown}"
        )


def check_parameters(model: nn.Module) -> None:
    """Raise unless all parameters are there, and none is packed for quantised kernels."""
    for path, module in named_modules(model):
        if "quantized" in type(module).__module__.split("."):
            raise ArgumentTypeError(
                "model must have floating-point layers, but "
                f"{path or '(root)'} ({type(module).__name__}) is quantised: explain the model "
                "that it was made from"
            )
        if any(is_lazy(held) for held in module._parameters.values() if held is not None):
            raise ArgumentError(
                "model must have all its parameters, but those of "
                f"{path or '(root)'} ({type(module).__name__}) are not there before its first "
                "call: call model(x) once"
            )


def check_input(model: nn.Module, x: Any, name: str = "x") -> None:
    """Raise unless ``x`` is a float tensor with a batch dimension that fits the model."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise ArgumentTypeError(
            f"{name} must have a floating-point dtype, got {_name(x.dtype)}: convert it with "
            f"{name}.float()"
        )
    _check_dense(x, name)
    if x.dim() < 2:
        raise ArgumentError(
            f"{name} must have a batch dimension and at least one more, got shape {list(x.shape)}"
        )
    parameters, buffers = tensors_of(model)
    dtypes = {p.dtype for p in parameters if p.dtype.is_floating_point}
    if dtypes and x.dtype not in dtypes:
        wanted = " or ".join(sorted(_name(dtype) for dtype in dtypes))
        raise ArgumentTypeError(
            f"{name} must have the dtype of the model's parameters, {wanted}, got {_name(x.dtype)}"
        )
    _check_device(parameters, buffers, x, name)


def check_constant_input(model: nn.Module, x: Tensor, name: str) -> None:
    """Raise unless an integer or bool tensor has a batch dimension and fits the model."""
    if x.is_complex():
        raise ArgumentTypeError(
            f"{name} must have a floating-point, integer or bool dtype, got {_name(x.dtype)}"
        )
    _check_dense(x, name)
    if x.dim() < 1:
        raise ArgumentError(f"{name} must have a batch dimension, got shape []")
    _check_device(*tensors_of(model), x, name)


def _check_dense(x: Tensor, name: str) -> None:
    if x.layout is not torch.strided:
        raise ArgumentTypeError(f"{name} must be a dense tensor, got layout {x.layout}")


def _check_device(parameters: list[Tensor], buffers: list[Tensor], x: Tensor, name: str) -> None:
    devices = {p.device for p in parameters if p.dtype.is_floating_point}
    devices |= {b.device for b in buffers if b.dtype.is_floating_point and b.dim() > 0}
    wanted = ", ".join(sorted(str(device) for device in devices))
    if len(devices) > 1:
        raise ArgumentError(
            f"model must be on one device, got parameters and buffers on {wanted}: move it with "
            f'model.to("{x.device}")'
        )
    if devices and x.device not in devices:
        raise ArgumentError(f"{name} must be on the device of the model, {wanted}, got {x.device}")
    if x.is_meta:
        raise ArgumentError(
            f"{name} must have entries, got a tensor on the meta device: move the model and x to "
            "another"
        )


_CHECKED_AT_ONCE = 2**22


def check_finite(x: Tensor, findings: Findings, name: str = "x") -> None:
    """Find NaN and infinite entries of an input.

    Raises:
        ArgumentError: there are some.
    """

    def test() -> Tensor:
        # In pieces, since what is written for each is as large as they are.
        rows = max(1, _CHECKED_AT_ONCE // max(1, x[:1].numel()))
        return ~torch.stack([torch.isfinite(piece).all() for piece in torch.split(x, rows)]).all()

    findings.check(x, test, partial(_refuse_infinite, x, name))


def _refuse_infinite(x: Tensor, name: str) -> NoReturn:
    wrong = x.numel() - int(torch.isfinite(x).sum())
    raise ArgumentError(
        f"{name} must be finite, got {wrong} NaN or infinite entries of {x.numel()}"
    )


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise ArgumentError unless a value is one of the choices."""
    choices = list(choices)
    if value not in choices:
        known = ", ".join(f'"{choice}"' for choice in choices)
        raise ArgumentError(f"{name} must be one of {known}, got {value!r}")


def check_finite_number(name: str, value: Any) -> None:
    """Raise unless a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ArgumentError(f"{name} must be finite, got {value}")


def option_names(make: Callable[..., Any]) -> list[str]:
    """What a class or function takes by name, beside its first argument."""
    return list(inspect.signature(make).parameters)[1:]


def check_bounds_form(bounds: Any) -> None:
    """Raise unless bounds are None or a pair of numbers or tensors."""
    if bounds is None:
        return
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        got = (
            f"{len(bounds)} entries" if isinstance(bounds, tuple | list) else type(bounds).__name__
        )
        raise ArgumentTypeError(f"bounds must be a pair (low, high) or None, got {got}")
    for name, bound in zip(("low", "high"), bounds, strict=True):
        if isinstance(bound, bool) or not isinstance(bound, int | float | Tensor):
            raise ArgumentTypeError(
                f"bounds must be numbers or tensors, got {type(bound).__name__} for {name}"
            )


def expand_bounds(bounds: Any, x: Tensor, findings: Findings) -> tuple[Tensor, Tensor] | None:
    """The bounds as two tensors of the shape of ``x`` and on its device; None for None.

    Raises:
        ArgumentError: a bound does not broadcast to ``x``, is not finite, or low is above high; or
            it must be copied to a device whose stream is being captured.
    """
    if bounds is None:
        return None
    low, high = (
        _expand_bound(name, bound, x, findings)
        for name, bound in zip(("low", "high"), bounds, strict=True)
    )
    findings.check(low, lambda: (low > high).any(), partial(_refuse_order, low, high))
    return low, high


def _expand_bound(name: str, bound: float | Tensor, x: Tensor, findings: Findings) -> Tensor:
    if isinstance(bound, Tensor):
        tensor = bound.detach().to(x.dtype)
        if not host.at_hand(tensor):
            tensor = tensor.to(x.device)
    else:
        tensor = torch.tensor(bound, dtype=x.dtype, device="cpu")
    try:
        tensor.expand(x.shape)
    except RuntimeError as error:
        raise ArgumentError(
            f"bounds must broadcast to x of shape {list(x.shape)}, got {name} of shape "
            f"{list(tensor.shape)}"
        ) from error
    findings.check(tensor, lambda: ~torch.isfinite(tensor).all(), partial(_refuse_bound, name))
    if tensor.device == x.device:
        return tensor.expand(x.shape)
    if tensor.dim() == 0:
        return x.new_full((), tensor.item()).expand(x.shape)
    if findings.capturing:
        raise ArgumentError(
            "bounds must be numbers or tensors on the device of x while a CUDA graph is captured, "
            f"got {name} on {tensor.device}"
        )
    return host.send(tensor, x.device).expand(x.shape)


def _refuse_bound(name: str) -> NoReturn:
    raise ArgumentError(f"bounds must be finite, got {name} with NaN or infinite entries")


def _refuse_order(low: Tensor, high: Tensor) -> NoReturn:
    position = int((low > high).flatten().int().argmax())
    raise ArgumentError(
        "bounds must have low <= high everywhere, got low "
        f"{float(low.flatten()[position])} above high {float(high.flatten()[position])}"
    )


def check_layers_form(layers: Any) -> None:
    """Raise ArgumentTypeError unless layers are None or a list of strings."""
    if layers is None:
        return
    if isinstance(layers, str) or not isinstance(layers, list | tuple | set | frozenset):
        raise ArgumentTypeError(
            f"layers must be a list of module paths or None, got {type(layers).__name__}"
        )
    for layer in layers:
        if not isinstance(layer, str):
            raise ArgumentTypeError(
                f"layers must hold module paths (str), got {type(layer).__name__}"
            )


def unknown_layer(needed: str, layer: str, model: nn.Module, runs: Iterable[str]) -> ArgumentError:
    """The error for a path that is no module of the model, or one that runs no operation.

    Args:
        needed: what the argument must do, as in "layers must name modules".
        layer: the path.
        model: the model.
        runs: paths that could be named.
    """
    for_example = hint(layer, runs)
    if layer in dict(model.named_modules()):
        return ArgumentError(
            f"{needed} whose operations the output depends on, got {layer!r}, "
            f"which runs none ({for_example})"
        )
    return ArgumentError(f"{needed} of the model, got {layer!r} ({for_example})")


def hint(name: str, known: Iterable[str]) -> str:
    """Names that the caller may have meant, for the end of a message."""
    known = sorted(set(known) - {""})
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    return "for example " + ", ".join(map(repr, close)) if close else "the model has none"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
