"""Argument checks of the reference, in the words of the native operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rapkernels import host
from rapkernels.reference._targets import has_targets

# As the native operations print them.
NAMES = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.uint8: "Byte",
    torch.bool: "Bool",
}
SHARES = ("absolute", "ratio", "positive")
FIRST_RULES = ("absolute", "author")


def require(condition: bool, message: str) -> None:
    """Raise the error of the native operations (TORCH_CHECK) where ``condition`` does not hold."""
    if not condition:
        raise RuntimeError(message)


def expand(value: int | Sequence[int], length: int) -> list[int]:
    """One int for every dimension, or the list as it is."""
    return [value] * length if isinstance(value, int) else list(value)


def _name(dtype: torch.dtype) -> str:
    return NAMES.get(dtype, str(dtype).removeprefix("torch."))


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def check_storage(op: str, name: str, tensor: Tensor) -> None:
    require(
        tensor.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16),
        f"{op}: {name} must be float32, float64, float16 or bfloat16, got {_name(tensor.dtype)}",
    )


def check_like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    require(
        tensor.dtype == other.dtype,
        f"{op}: {name} must have the dtype of {other_name} ({_name(other.dtype)}), "
        f"got {_name(tensor.dtype)}",
    )
    require(
        tensor.device == other.device,
        f"{op}: {name} must be on the device of {other_name} ({other.device}), got {tensor.device}",
    )


def check_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    require(
        _shape(tensor) == list(shape),
        f"{op}: {name} must have shape {list(shape)}, got {_shape(tensor)}",
    )


def check_dim(op: str, name: str, tensor: Tensor, low: int, high: int) -> None:
    span = f"{low}" if low == high else f"{low} to {high}"
    require(
        low <= tensor.dim() <= high,
        f"{op}: {name} must have {span} dimensions, got {tensor.dim()}",
    )


def check_samples(op: str, name: str, tensor: Tensor) -> None:
    check_storage(op, name, tensor)
    require(tensor.dim() >= 1, f"{op}: {name} must have at least 1 dimension (N, ...), got 0")


def check_per_sample(op: str, name: str, tensor: Tensor | None, x: Tensor) -> None:
    """psi, scale and total: one float64 per sample."""
    if tensor is None:
        return
    check_dtype(op, name, tensor, torch.float64)
    require(
        _shape(tensor) == [x.shape[0]],
        f"{op}: {name} must have shape [{x.shape[0]}], one entry per sample, got {_shape(tensor)}",
    )
    require(tensor.device == x.device, f"{op}: {name} must be on {x.device}, got {tensor.device}")


def check_pending(op: str, psi: Tensor | None, scale: Tensor | None, x: Tensor) -> None:
    check_per_sample(op, "psi", psi, x)
    check_per_sample(op, "scale", scale, x)


def check_list(op: str, name: str, values: Sequence[int], length: int, least: int) -> None:
    require(
        len(values) == length,
        f"{op}: {name} must have {length} entries, got {len(values)}",
    )
    require(
        all(value >= least for value in values),
        f"{op}: {name} must be at least {least} in every entry, got {list(values)}",
    )


def check_choice(op: str, given: str, choices: tuple[str, ...], name: str = "rule") -> None:
    *most, last = (f"'{choice}'" for choice in choices)
    require(given in choices, f"{op}: {name} must be {', '.join(most)} or {last}, got '{given}'")


def check_targets(
    op: str, name: str, tensor: Tensor, other_name: str, other: Tensor, shape: Sequence[int]
) -> None:
    """``tensor`` holds one or more samples of ``shape`` for each sample of ``other``."""
    samples = other.shape[0]
    check_shape(op, name, tensor, [tensor.shape[0] if tensor.dim() > 0 else samples, *shape])
    require(
        has_targets(other, tensor),
        f"{op}: {name} must have a multiple of the {samples} samples of {other_name}, got "
        f"{_shape(tensor)}",
    )


def check_linear(op: str, x: Tensor, weight: Tensor, relevance: Tensor | None = None) -> None:
    check_storage(op, "x", x)
    require(x.dim() >= 2, f"{op}: x must have at least 2 dimensions (N, *, I), got {x.dim()}")
    check_dim(op, "weight", weight, 2, 2)
    check_like(op, "weight", weight, "x", x)
    require(
        x.shape[-1] == weight.shape[1],
        f"{op}: x must have {weight.shape[1]} features in its last dimension, as weight "
        f"{_shape(weight)} needs, got {_shape(x)}",
    )
    if relevance is not None:
        check_like(op, "relevance", relevance, "x", x)
        check_targets(op, "relevance", relevance, "x", x, [*x.shape[1:-1], weight.shape[0]])


def check_stabilizer(op: str, value: float) -> None:
    require(
        0 <= value < math.inf,
        f"{op}: stabilizer must be finite and at least 0, got {value:g}",
    )


def check_bound(op: str, name: str, bound: Tensor, x: Tensor) -> None:
    check_like(op, name, bound, "x", x)
    sizes = zip(reversed(bound.shape), reversed(x.shape), strict=False)
    require(
        bound.dim() <= x.dim() and all(own in (1, size) for own, size in sizes),
        f"{op}: {name} must broadcast to the shape of x {_shape(x)}, got {_shape(bound)}",
    )


def check_dtype(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    required = str(dtype).removeprefix("torch.")
    require(tensor.dtype == dtype, f"{op}: {name} must be {required}, got {_name(tensor.dtype)}")


def check_range(op: str, name: str, tensor: Tensor, count: int) -> None:
    # Read on the host: a tensor on a device would have to wait for it.
    if not host.at_hand(tensor):
        return
    outside = tensor[(tensor < 0) | (tensor >= count)]
    found = int(outside[0]) if outside.numel() else 0
    require(outside.numel() == 0, f"{op}: {name} must be between 0 and {count - 1}, got {found}")
