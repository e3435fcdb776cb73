"""Shapes, dtypes and layouts of what the native operations return, for ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

_CONTIGUOUS = {
    "relprop_linear",
    "relprop_zbox_linear",
    "relprop_first_linear",
    "relprop_sharing_linear",
    "relprop_equilibrium_linear",
}
# Where in its arguments an operation finds a tensor with one sample for each target and sample.
_RELEVANCE = {
    "relprop_linear": 2,
    "relprop_conv": 3,
    "relprop_zbox_linear": 4,
    "relprop_zbox_conv": 4,
    "relprop_first_linear": 3,
    "relprop_max_pool": 1,
    "relprop_avg_pool": 1,
    "relprop_adaptive_max_pool": 1,
    "relprop_adaptive_avg_pool": 1,
    "relprop_equilibrium_linear": 2,
    "relprop_equilibrium_conv": 2,
    "share_squares": 1,
    "relprop_sharing_conv": 4,
    "relprop_sharing_linear": 3,
}


def fake_of(name: str) -> Callable[..., Any]:
    """What stands in for an operation when only shapes are asked for."""
    if name in _OTHERS:
        return _OTHERS[name]
    position, contiguous = _RELEVANCE[name], name in _CONTIGUOUS

    def relprop(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        relevance = arguments[position - 1]
        return (
            _of_targets(x, relevance, torch.contiguous_format if contiguous else None),
            _per_sample(relevance),
            _per_sample(relevance),
            _per_sample(relevance),
        )

    return relprop


def _of_targets(
    x: Tensor, relevance: Tensor, memory_format: torch.memory_format | None = None
) -> Tensor:
    """Like ``x``, with the samples of ``relevance``, laid out as the kernels do."""
    shape = (relevance.shape[0], *x.shape[1:])
    layout = suggest_memory_format(x) if memory_format is None else memory_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _per_sample(like: Tensor) -> Tensor:
    return like.new_empty(like.shape[0], dtype=torch.float64)


def _add(a: Tensor, _b: Tensor, relevance: Tensor, *_: Any) -> tuple[Tensor, ...]:
    first, second = _of_targets(a, relevance), _of_targets(a, relevance)
    return first, second, _per_sample(relevance), _per_sample(relevance)


def _merge(values_a: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _of_targets(values_a, values_a), _per_sample(values_a)


def _apply_shift(values: Tensor, *_: Any) -> Tensor:
    return _of_targets(values, values)


def _split_quotient(z: Tensor, _a: Tensor, relevance: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _of_targets(z, relevance), _of_targets(z, relevance), _per_sample(relevance)


def _gate(x: Tensor, gradient: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _of_targets(x, gradient), _per_sample(gradient), _per_sample(gradient)


def _linear_split(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = *x.shape[:-1], weight.shape[0]
    return x.new_empty(shape), x.new_empty(shape)


_OTHERS: dict[str, Callable[..., Any]] = {
    "relprop_add": _add,
    "merge": _merge,
    "apply_shift": _apply_shift,
    "split_quotient": _split_quotient,
    "gate": _gate,
    "linear_split": _linear_split,
}
