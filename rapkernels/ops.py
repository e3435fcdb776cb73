"""The native operations as typed functions.

Each has the signature, the meaning and the result of the function of the same name in
:mod:`rapkernels.reference` (the docstrings are those), and runs the kernel of its tensors' device.
They have no derivative: a backward pass through one raises, and points to the reference.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rapkernels import _library, reference
from rapkernels._fakes import fake_of
from rapkernels.reference._checks import expand

__all__ = [
    "apply_shift",
    "gate",
    "linear_split",
    "merge",
    "relprop_adaptive_avg_pool",
    "relprop_adaptive_max_pool",
    "relprop_add",
    "relprop_avg_pool",
    "relprop_conv",
    "relprop_equilibrium_conv",
    "relprop_equilibrium_linear",
    "relprop_first_linear",
    "relprop_linear",
    "relprop_max_pool",
    "relprop_sharing_conv",
    "relprop_sharing_linear",
    "relprop_zbox_conv",
    "relprop_zbox_linear",
    "share_squares",
    "split_quotient",
]

Relprop = tuple[Tensor, Tensor, Tensor, Tensor]
_Function = TypeVar("_Function", bound=Callable[..., Any])

# The tests put the emulated CUDA kernels in its place (tests/emulated.py).
_registered: Any = torch.ops.rapkernels


def _native(function: _Function) -> _Function:
    """Document ``function`` like its reference; without the extension make it say why."""
    function.__doc__ = inspect.getdoc(getattr(reference, function.__name__))
    if _library.has_ext():
        return function

    @functools.wraps(function)
    def unavailable(*_arguments: Any, **_options: Any) -> Any:
        _library.require_ext()

    return unavailable  # type: ignore[return-value]


@_native
def relprop_linear(
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    rule: str = "rap",
    nonnegative: bool = False,
    bias: Tensor | None = None,
    parameters: Sequence[float] = (),
    z: Tensor | None = None,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_linear`."""
    result: Relprop = _registered.relprop_linear(
        x,
        weight,
        relevance,
        psi,
        scale,
        rule,
        nonnegative,
        bias,
        parameters,
        z,
        positive,
        negative,
    )
    return result


@_native
def linear_split(x: Tensor, weight: Tensor, nonnegative: bool = False) -> tuple[Tensor, Tensor]:
    """See :func:`rapkernels.reference.linear_split`."""
    result: tuple[Tensor, Tensor] = _registered.linear_split(x, weight, nonnegative)
    return result


@_native
def relprop_conv(
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    rule: str = "rap_conv",
    nonnegative: bool = False,
    bias: Tensor | None = None,
    parameters: Sequence[float] = (),
    precision: str = "fp32",
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_conv`."""
    dims = weight.dim() - 2
    result: Relprop = _registered.relprop_conv(
        x,
        weight,
        z,
        relevance,
        psi,
        scale,
        expand(stride, dims),
        expand(padding, 2 * dims),
        expand(dilation, dims),
        groups,
        rule,
        nonnegative,
        bias,
        parameters,
        precision,
    )
    return result


@_native
def relprop_zbox_linear(
    x: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stabilizer: float = 0.0,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_zbox_linear`."""
    result: Relprop = _registered.relprop_zbox_linear(
        x, weight, low, high, relevance, psi, scale, stabilizer
    )
    return result


@_native
def relprop_zbox_conv(
    x: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    stabilizer: float = 0.0,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_zbox_conv`."""
    dims = weight.dim() - 2
    result: Relprop = _registered.relprop_zbox_conv(
        x,
        weight,
        low,
        high,
        relevance,
        psi,
        scale,
        expand(stride, dims),
        expand(padding, 2 * dims),
        expand(dilation, dims),
        groups,
        stabilizer,
    )
    return result


@_native
def relprop_equilibrium_linear(
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_equilibrium_linear`."""
    result: Relprop = _registered.relprop_equilibrium_linear(x, weight, relevance, psi, scale)
    return result


@_native
def relprop_equilibrium_conv(
    x: Tensor,
    weight: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    ratio: float = 2.0,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_equilibrium_conv`."""
    dims = weight.dim() - 2
    result: Relprop = _registered.relprop_equilibrium_conv(
        x,
        weight,
        relevance,
        psi,
        scale,
        expand(stride, dims),
        expand(padding, 2 * dims),
        expand(dilation, dims),
        groups,
        ratio,
    )
    return result


@_native
def relprop_first_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    score: Tensor,
    rule: str = "absolute",
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_first_linear`."""
    result: Relprop = _registered.relprop_first_linear(x, weight, bias, target, score, rule)
    return result


@_native
def relprop_max_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    absorb_zeros: bool = True,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_max_pool`."""
    dims = x.dim() - 2
    result: Relprop = _registered.relprop_max_pool(
        x,
        relevance,
        psi,
        scale,
        expand(kernel_size, dims),
        expand(kernel_size if stride is None else stride, dims),
        expand(padding, dims),
        expand(dilation, dims),
        ceil_mode,
        absorb_zeros,
    )
    return result


@_native
def relprop_avg_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None,
    scale: Tensor | None,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    rule: str = "absolute",
    stabilizer: float = 0.0,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_avg_pool`."""
    dims = x.dim() - 2
    result: Relprop = _registered.relprop_avg_pool(
        x,
        relevance,
        psi,
        scale,
        expand(kernel_size, dims),
        expand(kernel_size if stride is None else stride, dims),
        expand(padding, dims),
        ceil_mode,
        rule,
        stabilizer,
    )
    return result


@_native
def relprop_adaptive_max_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    absorb_zeros: bool = True,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_adaptive_max_pool`."""
    result: Relprop = _registered.relprop_adaptive_max_pool(x, relevance, psi, scale, absorb_zeros)
    return result


@_native
def relprop_adaptive_avg_pool(
    x: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    rule: str = "absolute",
    stabilizer: float = 0.0,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_adaptive_avg_pool`."""
    result: Relprop = _registered.relprop_adaptive_avg_pool(
        x, relevance, psi, scale, rule, stabilizer
    )
    return result


@_native
def relprop_add(
    a: Tensor,
    b: Tensor,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    rule: str = "absolute",
    stabilizer: float = 0.0,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_add`."""
    result: Relprop = _registered.relprop_add(a, b, relevance, psi, scale, rule, stabilizer)
    return result


@_native
def share_squares(
    v: Tensor, relevance: Tensor, psi: Tensor | None = None, scale: Tensor | None = None
) -> Relprop:
    """See :func:`rapkernels.reference.share_squares`."""
    result: Relprop = _registered.share_squares(v, relevance, psi, scale)
    return result


@_native
def relprop_sharing_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_sharing_conv`."""
    dims = weight.dim() - 2
    result: Relprop = _registered.relprop_sharing_conv(
        x,
        weight,
        bias,
        z,
        relevance,
        psi,
        scale,
        expand(stride, dims),
        expand(padding, 2 * dims),
        expand(dilation, dims),
        groups,
    )
    return result


@_native
def relprop_sharing_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    psi: Tensor | None = None,
    scale: Tensor | None = None,
) -> Relprop:
    """See :func:`rapkernels.reference.relprop_sharing_linear`."""
    result: Relprop = _registered.relprop_sharing_linear(x, weight, bias, relevance, psi, scale)
    return result


@_native
def merge(
    values_a: Tensor,
    psi_a: Tensor | None,
    scale_a: Tensor | None,
    values_b: Tensor,
    psi_b: Tensor | None = None,
    scale_b: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`rapkernels.reference.merge`."""
    result: tuple[Tensor, Tensor] = _registered.merge(
        values_a, psi_a, scale_a, values_b, psi_b, scale_b
    )
    return result


@_native
def apply_shift(values: Tensor, psi: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """See :func:`rapkernels.reference.apply_shift`."""
    result: Tensor = _registered.apply_shift(values, psi, scale)
    return result


@_native
def split_quotient(
    z: Tensor, a: Tensor, relevance: Tensor, psi: Tensor | None = None, rule: str = "rap"
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`rapkernels.reference.split_quotient`."""
    result: tuple[Tensor, Tensor, Tensor] = _registered.split_quotient(z, a, relevance, psi, rule)
    return result


@_native
def gate(
    x: Tensor, gradient: Tensor, total: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`rapkernels.reference.gate`."""
    result: tuple[Tensor, Tensor, Tensor] = _registered.gate(x, gradient, total, scale)
    return result


def _register(name: str) -> None:
    def no_derivative(_context: Any, *_gradients: Tensor | None) -> None:
        raise RuntimeError(
            f"rapkernels::{name} has no derivative; to differentiate relevance use "
            f"rapkernels.reference.{name}, which computes the same in plain PyTorch"
        )

    torch.library.register_fake(f"rapkernels::{name}", fake_of(name))
    torch.library.register_autograd(f"rapkernels::{name}", no_derivative)


if _library.has_ext():
    for _name in __all__:
        _register(_name)
