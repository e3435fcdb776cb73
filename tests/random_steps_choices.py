"""The kinds of steps of random networks that choose, pick and resample entries, and what others
are made of.
"""

# All steps are drawn by the same call.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.random_networks import Call, Draw, Layout, Shape, With, kind

ANY = "image tokens table"
Pair = Callable[[Tensor, Tensor], Tensor]


def _layout(shape: Shape) -> Layout:
    return "table" if len(shape) == 1 else "image"


def _over_dim(y: Tensor, function: Callable[..., Any], dim: int) -> Tensor:
    found: Tensor = function(y, dim, keepdim=True)[0]
    return found


@kind(ANY, "amax amin max.dim min.dim")
def extremum(d: Draw, shape: Shape) -> nn.Module:
    if d.flag():
        return Call(_over_dim, d.one_of(torch.max, torch.min), d.dim(shape))
    dims = tuple(sorted({d.integer(1, len(shape)) for _ in range(d.integer(1, 2))}))
    return Call(d.one_of(torch.amax, torch.amin), dims, keepdim=True)


_LARGER: dict[str, Pair] = {
    name: getattr(torch, name) for name in ("maximum", "minimum", "max", "min", "fmax", "fmin")
}


def _competing(m: Any, y: Tensor) -> Tensor:
    how, dims = m.settings
    b = m.branch(y)
    return _LARGER[how](y, b.mean(dims, keepdim=True) if dims else b)


@kind(ANY, "maximum minimum max.other min.other fmax fmin", nests=True)
def larger(d: Draw, shape: Shape) -> nn.Module | None:
    branch, left = d.branch(_layout(shape), shape)
    if len(left) != len(shape):
        return None
    dims = tuple(n for n in range(1, len(shape) + 1) if left[n - 1] != shape[n - 1])
    return With(_competing, (d.one_of(*_LARGER), dims), branch=branch)


def _with_bound(m: Any, y: Tensor) -> Tensor:
    return _LARGER[m.settings](y, m.bound)


@kind(ANY, "maximum minimum")
def bounded(d: Draw, shape: Shape) -> nn.Module:
    size = tuple(edge if d.flag() else 1 for edge in shape)
    return With(_with_bound, d.one_of(*_LARGER), bound=size)


def _positive(y: Tensor) -> Tensor:
    return functional.softplus(y) + 0.1


# Defined, and of moderate size, wherever they are called.
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "square": lambda y: torch.tanh(y).square(),
    "pow": lambda y: torch.tanh(y) ** 3,
    "root": lambda y: torch.pow(_positive(y), 0.3),
    "inverse": lambda y: torch.pow(_positive(y), -1),
    "exp": lambda y: torch.exp(torch.tanh(y)),
    "expm1": lambda y: torch.expm1(torch.tanh(y)),
    "log": lambda y: torch.log(_positive(y)),
    "log1p": lambda y: torch.log1p(_positive(y)),
    "sqrt": lambda y: torch.sqrt(_positive(y)),
    "erf": torch.erf,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "expit": torch.special.expit,
    "rrelu": functional.rrelu,
}


def _mapped(m: Any, y: Tensor) -> Tensor:
    return _FUNCTIONS[m.settings](y)


@kind(
    ANY,
    "abs square pow.Tensor_Scalar exp expm1 log log1p sqrt erf atan asinh special_expit rrelu",
)
def function(d: Draw, shape: Shape) -> nn.Module:
    return With(_mapped, d.one_of(*_FUNCTIONS))


_MASKED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "number": lambda m, y: y.masked_fill(m.p > 0, -0.3),
    "of the value": lambda _, y: y.masked_fill(y > 0.1, 0.2),
    "tensor": lambda m, y: y.masked_fill(m.p > 0, m.p.amax()),
    "other number": lambda _, y: torch.where(y > 0.1, y, 0.3),
    "own number": lambda m, y: torch.where(m.p > 0, -0.3, y),
    "two": lambda m, y: torch.where(m.p > 0, y, torch.tanh(y)),
    "parameter": lambda m, y: torch.where(y > -0.1, y, m.p),
    "flipped": lambda _, y: torch.where(y > 0.1, y, y.flip(1)),
}


def _masked(m: Any, y: Tensor) -> Tensor:
    return _MASKED[m.settings](m, y)


@kind(
    ANY,
    "masked_fill.Scalar masked_fill.Tensor where.self where.ScalarOther where.ScalarSelf",
)
def masked(d: Draw, shape: Shape) -> nn.Module:
    size = tuple(edge if d.flag() else 1 for edge in shape)
    return With(_masked, d.one_of(*_MASKED), p=size)


@kind("image tokens", "tril triu")
def triangle(d: Draw, shape: Shape) -> nn.Module:
    return Call(d.one_of(torch.tril, torch.triu), d.integer(-1, 1))


def _by_index(y: Tensor, dim: int, places: list[int]) -> Tensor:
    return y[(slice(None),) * dim + (places,)]


def _by_two_indices(y: Tensor, first: list[int], second: list[int]) -> Tensor:
    return y[:, first, second].unsqueeze(2)


def _selected(y: Tensor, dim: int, places: list[int]) -> Tensor:
    return torch.index_select(y, dim, torch.tensor(places))


def _sorted(y: Tensor, function: Callable[..., Tensor], dim: int) -> Tensor:
    return function(y, dim, torch.argsort(y, dim=dim, stable=True))


def _gathered(y: Tensor, function: Callable[..., Tensor], dim: int, places: list[int]) -> Tensor:
    index = torch.tensor(places).view(-1, *[1] * (y.dim() - 1 - dim))
    size = (*y.shape[:dim], len(places), *y.shape[dim + 1 :])
    return function(y, dim, index.expand(size))


def _take(y: Tensor, dim: int, index: Tensor) -> Tensor:
    return torch.take_along_dim(y, index, dim)


@kind(ANY, "index.Tensor index_select gather take_along_dim")
def picked(d: Draw, shape: Shape) -> nn.Module:
    dim = d.integer(1, len(shape))
    places = [d.integer(0, shape[dim - 1] - 1) for _ in range(d.integer(1, 4))]
    choices: list[nn.Module] = [
        Call(_by_index, dim, places),
        Call(_selected, dim, places),
        Call(_sorted, d.one_of(torch.gather, _take), dim),
        Call(_gathered, d.one_of(torch.gather, _take), dim, places),
    ]
    if len(shape) > 1:
        first, second = ([d.integer(0, edge - 1) for _ in range(2)] for edge in shape[:2])
        choices.append(Call(_by_two_indices, first, second))
    return d.one_of(*choices)  # type: ignore[no-any-return]


def _diagonal(y: Tensor, offset: int, first: int, second: int) -> Tensor:
    return torch.diagonal(y, offset, first, second).unsqueeze(first)


def _windows(y: Tensor, dim: int, size: int, step: int) -> Tensor:
    return y.unfold(dim, size, step).movedim(-1, dim + 1).flatten(dim, dim + 1)


def _broadcast(y: Tensor, times: int) -> Tensor:
    return torch.broadcast_to(y.unsqueeze(1), (y.shape[0], times, *y.shape[1:])).flatten(1, 2)


def _turned_twice(y: Tensor) -> Tensor:
    return torch.relu(y.mT + 0.1).mT


@kind(ANY, "unfold repeat_interleave.self_int broadcast_to mT")
def repeated(d: Draw, shape: Shape) -> nn.Module:
    dim = d.integer(1, len(shape))
    size = d.integer(1, shape[dim - 1])
    return d.one_of(  # type: ignore[no-any-return]
        Call(_windows, dim, size, d.integer(1, 2)),
        Call(torch.repeat_interleave, d.integer(1, 3), dim),
        Call(_broadcast, d.integer(1, 2)),
        Call(_turned_twice),
    )


@kind("image tokens", "rot90 diagonal mT")
def turned(d: Draw, shape: Shape) -> nn.Module | None:
    last = len(shape)
    dims = d.one_of((1, 2), (last, last - 1), (1, last))
    choices: list[nn.Module] = [Call(torch.rot90, d.integer(-1, 2), dims), Call(_swapped)]
    if min(shape[dim - 1] for dim in dims) > 1:
        choices.append(Call(_diagonal, d.integer(-1, 1), *sorted(dims)))
    return d.one_of(*choices)  # type: ignore[no-any-return]


def _swapped(y: Tensor) -> Tensor:
    return y.mT


@kind("image", "im2col native_channel_shuffle")
def columns(d: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) != 3:
        return None
    groups = [n for n in range(2, shape[0] + 1) if shape[0] % n == 0]
    if groups and d.flag():
        return Call(torch.native_channel_shuffle, d.one_of(*groups))
    kernel = (d.integer(1, 2), d.integer(1, 2))
    if min(shape[1:]) < 2:
        return None
    return nn.Unfold(kernel, padding=d.integer(0, 1), stride=d.integer(1, 3))


@kind(
    "image",
    "_upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec "
    "_upsample_bilinear2d_aa.vec upsample_bicubic2d.vec",
)
def other_resampling(d: Draw, shape: Shape) -> nn.Module:
    settings: dict[str, Any] = {
        "size": tuple(d.integer(1, min(8, 2 * edge)) for edge in shape[1:]),
    }
    if d.flag():
        settings = {"scale_factor": d.one_of(1.5, 2.0, 1.0)}
    mode = d.one_of("nearest-exact", "bicubic", "bilinear") if len(shape) == 3 else "nearest-exact"
    if mode == "bilinear":
        settings |= {"antialias": True}
    if mode != "nearest-exact":
        settings |= {"align_corners": d.flag()}
    return Call(functional.interpolate, mode=mode, **settings)


def _sampled(m: Any, y: Tensor) -> Tensor:
    mode, border, aligned = m.settings
    grid = torch.tanh(m.grid) * 1.2
    grid = grid.expand(y.shape[0], *grid.shape)
    return functional.grid_sample(y, grid, mode, border, aligned)


def _spatially_transformed(m: Any, y: Tensor) -> Tensor:
    mode, border, aligned = m.settings
    dims = y.dim() - 2
    theta = torch.tanh(m.theta(y.flatten(2).mean(2))).view(-1, dims, dims + 1)
    grid = functional.affine_grid(theta, list(y.shape), aligned)
    return functional.grid_sample(y, grid, mode, border, aligned)


@kind("image", "grid_sampler")
def sampled(d: Draw, shape: Shape) -> nn.Module | None:
    dims = len(shape) - 1
    if dims == 1:
        return None
    settings = (
        d.one_of("bilinear", "nearest"),
        d.one_of("zeros", "border", "reflection"),
        d.flag(),
    )
    if d.flag():
        theta = nn.Linear(shape[0], dims * (dims + 1))
        return With(_spatially_transformed, settings, theta=theta)
    size = tuple(d.integer(1, 4) for _ in range(dims))
    return With(_sampled, settings, grid=(*size, dims))


_TRANSPOSED: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@kind("image", "conv_transpose1d conv_transpose2d.input conv_transpose3d.input")
def transposed_convolution(d: Draw, shape: Shape) -> nn.Module | None:
    channels, size = shape[0], shape[1:]
    groups = d.one_of(*(n for n in range(1, channels + 1) if channels % n == 0))
    kernel, stride, dilation, padding = (
        tuple(d.integer(low, high) for _ in size) for low, high in ((1, 3), (1, 2), (1, 2), (0, 2))
    )
    extra = tuple(
        d.integer(0, max(step, spread) - 1) for step, spread in zip(stride, dilation, strict=True)
    )
    left = [
        (n - 1) * s - 2 * p + w * (k - 1) + e + 1
        for n, s, p, w, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
    ]
    if min(left) < 1:
        return None
    layer = _TRANSPOSED[len(size)](
        channels,
        groups * d.integer(1, max(1, 4 // groups)),
        kernel,
        stride,
        padding,
        extra,
        groups,
        d.flag(),
        dilation,
    )
    if not d.flag():
        return layer  # type: ignore[no-any-return]
    norm = _NORMS[len(size)](layer.out_channels, affine=d.flag())
    return nn.Sequential(layer, norm, nn.ReLU(inplace=True))


_MADE_OF_OTHERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "addcmul": lambda m, y: torch.addcmul(m.p, y, m.p, value=0.5),
    "addcmul of two": lambda m, y: torch.addcmul(y, y, torch.sigmoid(y + m.p)),
    "addcdiv": lambda m, y: torch.addcdiv(m.p, y, m.p.square() + 0.5, value=-1),
    "addcdiv of two": lambda m, y: torch.addcdiv(y, y, torch.sigmoid(y) + m.p.square() + 0.1),
    "reshape_as": lambda _, y: torch.relu(y.flatten(1) + 0.1).reshape_as(y),
    "view_as": lambda _, y: torch.relu(y.flatten(1) + 0.1).view_as(y),
    "glu": lambda m, y: functional.glu(torch.cat([y, y.flip(1) + m.p], 1), 1),
}


def _made(m: Any, y: Tensor) -> Tensor:
    return _MADE_OF_OTHERS[m.settings](m, y)


@kind(ANY, "addcmul addcdiv reshape_as view_as glu")
def made_of_others(d: Draw, shape: Shape) -> nn.Module:
    return With(_made, d.one_of(*_MADE_OF_OTHERS), p=shape)


@kind(ANY, "glu")
def halves(d: Draw, shape: Shape) -> nn.Module | None:
    dims = [dim for dim, edge in enumerate(shape, 1) if edge % 2 == 0]
    return nn.GLU(d.one_of(*dims)) if dims else None
