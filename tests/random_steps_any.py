"""The kinds of steps of random networks that take values of any layout."""

# All steps are drawn by the same call.
# ruff: noqa: ARG001

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.random_networks import Call, Draw, Layout, Shape, With, kind

ANY = "image tokens table"


def _sigmoid_in_place(y: Tensor) -> Tensor:
    return (y * 1).sigmoid_()


_ACTIVATIONS: tuple[Callable[[bool], nn.Module], ...] = (
    *(lambda inplace, cls=cls: cls(inplace=inplace) for cls in (nn.ReLU, nn.ReLU6, nn.SiLU)),
    *(lambda inplace, cls=cls: cls(inplace=inplace) for cls in (nn.Mish, nn.Hardswish, nn.SELU)),
    *(lambda inplace, cls=cls: cls(inplace=inplace) for cls in (nn.ELU, nn.CELU, nn.LeakyReLU)),
    *(lambda inplace, cls=cls: cls(inplace=inplace) for cls in (nn.Hardsigmoid, nn.Hardtanh)),
    lambda inplace: nn.Hardtanh(0.1, 2.0, inplace=inplace),
    lambda inplace: nn.Threshold(0.2, -0.3, inplace=inplace),
    lambda _: nn.GELU(),
    lambda _: nn.GELU("tanh"),
    lambda _: nn.Softplus(),
    lambda _: nn.Softshrink(0.1),
    lambda _: nn.Hardshrink(0.1),
    lambda _: nn.LogSigmoid(),
    lambda _: nn.Sigmoid(),
    lambda _: nn.Tanh(),
    lambda _: nn.PReLU(),
    lambda _: Call(torch.clamp, -0.4, 0.6),
    lambda _: Call(torch.clamp_min, 0.1),
    lambda _: Call(torch.clamp_max, 0.3),
    lambda _: Call(_sigmoid_in_place),
)


@kind(
    ANY,
    "relu hardtanh leaky_relu elu selu celu silu mish hardswish hardsigmoid sigmoid tanh "
    "gelu threshold prelu softplus softshrink hardshrink log_sigmoid clamp clamp_min clamp_max",
)
def activation(d: Draw, shape: Shape) -> nn.Module:
    return d.one_of(*_ACTIVATIONS)(d.flag())  # type: ignore[no-any-return]


@kind(ANY, "relu")
def relu(d: Draw, shape: Shape) -> nn.Module:
    return nn.ReLU(inplace=d.flag())


def _minus(y: Tensor) -> Tensor:
    return -y


def _less(y: Tensor, number: float) -> Tensor:
    return number - y


def _add_in_place(y: Tensor, number: float) -> Tensor:
    y = y * 1
    y += number
    y *= 2
    return y


def _written_through_a_view(y: Tensor) -> Tensor:
    """In-place writes that only ``run_decompositions`` takes out of the graph."""
    y = y.clone(memory_format=torch.contiguous_format)
    y.view(y.shape[0], -1).relu_()
    return y


@kind(
    ANY,
    "add.Tensor sub.Tensor mul.Tensor div.Tensor neg rsub.Scalar add.Scalar sub.Scalar mul.Scalar "
    "div.Scalar",
)
def affine(d: Draw, shape: Shape) -> nn.Module:
    return d.one_of(  # type: ignore[no-any-return]
        Call(torch.add, 0.3),
        Call(torch.sub, 0.3),
        Call(torch.mul, d.one_of(0.5, -1.5)),
        Call(torch.div, d.one_of(2.0, -2.0)),
        Call(_minus),
        Call(_less, 0.4),
        Call(torch.rsub, 0.4),
        Call(torch.rsub, 0.4, alpha=2),
        Call(_add_in_place, 0.2),
        Call(torch.ops.aten.add.Scalar, 0.3),
        Call(torch.ops.aten.sub.Scalar, 0.3),
        Call(torch.ops.aten.mul.Scalar, -0.7),
        Call(torch.ops.aten.div.Scalar, 3.0),
    )


@kind(ANY, "view", nests=True)
def aliased_write(d: Draw, shape: Shape) -> nn.Module:
    return Call(_written_through_a_view)


_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "y + p": operator.add,
    "p + y": lambda y, p: p + y,
    "y * p": operator.mul,
    "p * y": lambda y, p: p * y,
    "y - p": operator.sub,
    "p - y": lambda y, p: p - y,
    "y / p": operator.truediv,
    "add alpha": lambda y, p: torch.add(y, p, alpha=-0.5),
    "add to p, alpha": lambda y, p: torch.add(p, y, alpha=-0.5),
    "rsub": lambda y, p: torch.ops.aten.rsub.Tensor(y, p),
    "sub alpha": lambda y, p: torch.sub(p, y, alpha=2),
}


def _combined(m: Any, y: Tensor) -> Tensor:
    return _COMBINE[m.settings](y, m.p)


@kind(ANY, "add.Tensor mul.Tensor sub.Tensor div.Tensor rsub.Tensor")
def with_parameter(d: Draw, shape: Shape) -> nn.Module:
    """A parameter that broadcasts to the value, or that the value broadcasts to."""
    sizes = tuple(edge if d.flag() else 1 for edge in shape)
    sizes = tuple(2 if edge == 1 and d.integer(0, 5) == 5 else edge for edge in sizes)
    sizes = tuple(
        edge if have != 1 or edge <= 2 else have for edge, have in zip(sizes, shape, strict=True)
    )
    sizes = tuple(
        edge if have == 1 else min(edge, 1) if edge != have else edge
        for edge, have in zip(sizes, shape, strict=True)
    )
    sizes = d.one_of((1, *sizes), sizes, ())
    return With(_combined, d.one_of(*_COMBINE), p=sizes)


@kind(
    ANY,
    "clone contiguous detach alias dropout alpha_dropout to.dtype to.dtype_layout to.device "
    "to.other type_as _to_copy",
)
def copy(d: Draw, shape: Shape) -> nn.Module:
    return d.one_of(  # type: ignore[no-any-return]
        nn.Dropout(0.5, inplace=d.flag()),
        nn.AlphaDropout(0.5),
        Call(torch.clone),
        Call(Tensor.contiguous),
        Call(torch.detach),
        Call(torch.ops.aten.alias.default),
        Call(Tensor.to, torch.float64),
        Call(_like_itself, Tensor.to),
        Call(_like_itself, Tensor.type_as),
        Call(torch.ops.aten.to.dtype_layout, dtype=torch.float64),
        Call(_like_itself, torch.ops.aten.to.other),
        Call(torch.ops.aten._to_copy.default),
    )


def _like_itself(y: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return function(y, y)


def _parts(m: Any, y: Tensor) -> Tensor:
    split, dim, order, join = m.settings
    parts = _SPLITS[split](y, dim)
    chosen = [parts[place % len(parts)] for place in order]
    if join == "sum":
        total = chosen[0]
        for part in chosen[1:]:
            total = total + part
        return total
    if split == "unbind" or join == "stack":
        result = torch.stack(chosen, dim)
        return result if split == "unbind" else result.flatten(dim, dim + 1)
    return torch.cat(chosen, dim) if join == "cat" else torch.concat(chosen, dim)


_SPLITS: dict[str, Callable[[Tensor, int], Any]] = {
    "chunk": lambda y, dim: torch.chunk(y, 2, dim),
    "split": lambda y, dim: torch.split(y, max(1, y.shape[dim] // 2), dim),
    "sizes": lambda y, dim: torch.split(y, [1, y.shape[dim] - 1], dim),
    "with_sizes": lambda y, dim: torch.split_with_sizes(y, [1, y.shape[dim] - 1], dim),
    "tensor_split": lambda y, dim: torch.tensor_split(y, 2, dim),
    "slices": lambda y, dim: [y.narrow(dim, 0, 1), y.narrow(dim, 1, y.shape[dim] - 1)],
    "steps": lambda y, dim: [y[(slice(None),) * dim + (slice(None, None, 2),)]],
    "selected": lambda y, dim: [y.select(dim, 1).unsqueeze(dim), y.select(dim, 0).unsqueeze(dim)],
    "unbind": lambda y, dim: torch.unbind(y, dim),
}


@kind(
    ANY,
    "chunk split.Tensor split_with_sizes tensor_split.sections slice.Tensor select.int "
    "narrow unbind.int stack cat concat unsqueeze",
)
def parts(d: Draw, shape: Shape) -> nn.Module | None:
    dim = d.integer(1, len(shape))
    if shape[dim - 1] < 2:
        return None
    split = d.one_of(*_SPLITS)
    order = tuple(d.integer(0, 2) for _ in range(d.integer(1, 3)))
    even = shape[dim - 1] % 2 == 0 and split in ("chunk", "split", "tensor_split", "unbind")
    join = d.one_of("cat", "concat", "stack", "sum") if even else d.one_of("cat", "concat")
    if split == "unbind" and join == "sum":
        join = "stack"
    return With(_parts, (split, dim, order, join))


@kind(ANY, "flip roll repeat tile expand expand_as")
def moved(d: Draw, shape: Shape) -> nn.Module:
    dim, last = d.integer(1, len(shape)), len(shape)
    counts = tuple(2 if place == dim else 1 for place in range(last + 1))
    return d.one_of(  # type: ignore[no-any-return]
        Call(torch.flip, (dim,)),
        Call(torch.roll, d.integer(-2, 2), dim),
        Call(torch.roll, (1, 2), (dim, last)),
        Call(Tensor.repeat, *counts),
        Call(torch.tile, counts),
        Call(_repeated, "expand"),
        Call(_repeated, "expand_as"),
    )


def _repeated(y: Tensor, how: str) -> Tensor:
    size = (y.shape[0], 2, *y.shape[1:])
    wide = y.unsqueeze(1)
    wide = wide.expand(size) if how == "expand" else wide.expand_as(y.new_zeros(size))
    return wide.flatten(1, 2)


@kind(
    ANY,
    "transpose.int swapaxes reshape flatten.using_ints unflatten.int t numpy_T squeeze.dim "
    "squeeze.dims",
)
def reshaped(d: Draw, shape: Shape) -> nn.Module:
    first, second = d.integer(1, len(shape)), d.integer(1, len(shape))
    return d.one_of(  # type: ignore[no-any-return]
        Call(torch.transpose, first, second),
        Call(torch.swapaxes, first, second),
        Call(_there_and_back, "flatten"),
        Call(_there_and_back, "squeeze"),
        Call(_there_and_back, "squeezes"),
        Call(_there_and_back, "reshape"),
        Call(_there_and_back, "t"),
        Call(_there_and_back, "T"),
    )


def _there_and_back(y: Tensor, how: str) -> Tensor:
    size = y.shape[1:]
    if how == "flatten":
        return torch.relu(y.flatten(1) + 0.2).unflatten(1, size)
    if how == "squeeze":
        return torch.relu(y.unsqueeze(2)).squeeze(2)
    if how == "squeezes":
        return torch.squeeze(torch.relu(y[:, None, None]), (1, 2))
    if how == "t":
        return torch.relu(y.flatten(1).t()).t().reshape(y.shape)
    if how == "T":
        return torch.relu(y.flatten(1).T).T.reshape(y.shape)
    return torch.relu(y.reshape(y.shape[0], -1)).reshape(-1, *size)


def _layout(shape: Shape) -> Layout:
    # (L, C) and (C, L) are both taken as feature maps: every step for those goes with them.
    return "table" if len(shape) == 1 else "image"


def _broadcasts(shape: Shape, other: Shape) -> bool:
    return len(shape) == len(other) and all(
        edge in (have, 1) for edge, have in zip(other, shape, strict=True)
    )


_SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "y + b": operator.add,
    "b + y": lambda y, b: b + y,
    "y - b": operator.sub,
    "alpha": lambda y, b: torch.sub(y, b, alpha=0.5),
    "b += y": lambda y, b: (b * 1).add_(y) if b.shape == y.shape else b + y,
}


def _summed(m: Any, y: Tensor) -> Tensor:
    how, dims = m.settings
    b = m.branch(y)
    return _SUMS[how](y, b.mean(dims, keepdim=True) if dims else b)


@kind(ANY, "add.Tensor sub.Tensor mean.dim", nests=True)
def residual(d: Draw, shape: Shape) -> nn.Module | None:
    branch, left = d.branch(_layout(shape), shape)
    dims: tuple[int, ...] = ()
    if not _broadcasts(shape, left):
        if len(left) != len(shape):
            return None
        dims = tuple(n for n in range(1, len(shape) + 1) if left[n - 1] != shape[n - 1])
    if not dims and d.integer(0, 2) == 2:
        dims = (d.integer(1, len(shape)),)
    return With(_summed, (d.one_of(*_SUMS), dims), branch=branch)


def _concatenated(m: Any, y: Tensor) -> Tensor:
    return torch.cat([m.branch(y), y], m.settings)


@kind(ANY, "cat", nests=True)
def concatenation(d: Draw, shape: Shape) -> nn.Module | None:
    branch, left = d.branch(_layout(shape), shape)
    if len(left) != len(shape):
        return None
    different = [n for n in range(1, len(shape) + 1) if left[n - 1] != shape[n - 1]]
    if len(different) > 1:
        return None
    dim = different[0] if different else d.integer(1, len(shape))
    return With(_concatenated, dim, branch=branch)


def _with_token(m: Any, y: Tensor) -> Tensor:
    token = m.token.expand(y.shape[0], *m.token.shape)
    dim, first = m.settings
    return torch.cat([token, y] if first else [y, token], dim)


@kind(ANY, "cat expand")
def with_token(d: Draw, shape: Shape) -> nn.Module:
    dim = d.integer(1, len(shape))
    size = tuple(1 if n == dim else edge for n, edge in enumerate(shape, 1))
    return With(_with_token, (dim, d.flag()), token=size)


def _stacked_token(m: Any, y: Tensor) -> Tensor:
    token = m.token.expand(y.shape)
    return torch.stack([y, token, y], 1).flatten(1, 2)


@kind(ANY, "stack")
def with_stacked_token(d: Draw, shape: Shape) -> nn.Module:
    return With(_stacked_token, token=shape)


@kind(ANY, "relu", nests=True)
def called_twice(d: Draw, shape: Shape) -> nn.Module | None:
    inner, left = d.branch(_layout(shape), shape)
    return nn.Sequential(inner, nn.ReLU(), inner) if left == shape else None


_PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "y * sigmoid": lambda y, b: y * torch.sigmoid(b),
    "hardsigmoid * y": lambda y, b: functional.hardsigmoid(b) * y,
    "silu * y": lambda y, b: functional.silu(b) * y,
    "y * gelu": lambda y, b: y * functional.gelu(b),
    "divided": lambda y, b: y / (b.square() + 1),
    "softmax": lambda y, b: y * torch.softmax(b, 1),
    "equal": operator.mul,
    "square": lambda y, b: y * y + b,
    "in place": lambda y, b: (y * 1).mul_(torch.sigmoid(b)),
    "detached": lambda y, b: y / (b.detach().abs() + 0.5),
    "by itself": lambda y, b: b + y / (y + 10),
}


def _gated(m: Any, y: Tensor) -> Tensor:
    how, dims = m.settings
    gate = m.branch(y)
    return _PRODUCTS[how](y, gate.mean(dims, keepdim=True) if dims else gate)


@kind(ANY, "mul.Tensor div.Tensor", nests=True)
def product(d: Draw, shape: Shape) -> nn.Module | None:
    branch, left = d.branch(_layout(shape), shape, 1)
    if len(left) != len(shape):
        return None
    dims = tuple(n for n in range(1, len(shape) + 1) if left[n - 1] != shape[n - 1])
    return With(_gated, (d.one_of(*_PRODUCTS), dims), branch=branch)


def _gated_halves(m: Any, y: Tensor) -> Tensor:
    first, second = m.wide(y).chunk(2, -1)
    found: Tensor = m.back(functional.silu(first) * second)
    return found


@kind(ANY, "linear silu chunk")
def gated_linear_unit(d: Draw, shape: Shape) -> nn.Module:
    wide, back = nn.Linear(shape[-1], 6, bias=d.flag()), nn.Linear(3, shape[-1])
    return With(_gated_halves, wide=wide, back=back)


@kind(ANY, "linear mm addmm matmul")
def linear(d: Draw, shape: Shape) -> nn.Module:
    width = d.integer(1, 5)
    if d.flag():
        return nn.Linear(shape[-1], width, bias=d.flag())
    how = d.one_of(*_MATRIX_PRODUCTS) if len(shape) == 1 else "matmul"
    return With(_matrix_product, how, w=(shape[-1], width), b=(width,))


_MATRIX_PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "matmul": lambda y, w, _: y @ w,
    "mm": lambda y, w, _: torch.mm(y, w),
    "addmm": lambda y, w, b: torch.addmm(b, y, w),
}


def _matrix_product(m: Any, y: Tensor) -> Tensor:
    return _MATRIX_PRODUCTS[m.settings](y, m.w, m.b)


def _samples_last(m: Any, y: Tensor) -> Tensor:
    """As torch's own multi-head attention does: samples are not the first dimension."""
    found: Tensor = m.inner(y.transpose(0, 1)).transpose(0, 1)
    return found


_MIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda y, w: (w @ y.flatten(2)).unflatten(2, y.shape[2:]),
    "einsum": lambda y, w: torch.einsum("ij,nj...->ni...", w, y),
    "bmm": lambda y, w: torch.bmm(w.expand(y.shape[0], *w.shape), y.flatten(2)).reshape(
        y.shape[0], -1, *y.shape[2:]
    ),
}


def _mixed(m: Any, y: Tensor) -> Tensor:
    return _MIXES[m.settings](y, m.w)


@kind("image tokens", "einsum bmm matmul")
def mixed_by_parameter(d: Draw, shape: Shape) -> nn.Module:
    """Sums over the first dimension whose weights are parameters of both signs."""
    return With(_mixed, d.one_of(*_MIXES), w=(d.integer(1, 4), shape[0]))


def _decomposed(m: Any, y: Tensor) -> Tensor:
    """What other operations are made of, called by itself."""
    aten, size = torch.ops.aten, y.shape
    if m.settings == "native_layer_norm":
        return aten.native_layer_norm(y, size[-1:], m.scale, m.shift, 1e-5)[0]  # type: ignore[no-any-return]
    if m.settings == "_fused_rms_norm":
        return aten._fused_rms_norm(y, size[-1:], m.scale, 1e-5)[0]  # type: ignore[no-any-return]
    if m.settings == "_softmax":
        return y * aten._softmax(y, 1, False)  # type: ignore[no-any-return]
    if m.settings == "squeeze":
        return y.unsqueeze(1).squeeze() if 1 not in size[1:] else y
    if m.settings == "split.sizes":
        return torch.cat(aten.split.sizes(y, [1, size[1] - 1], 1)[::-1], 1)
    return aten._unsafe_view(y.contiguous(), [size[0], -1]).reshape(size)  # type: ignore[no-any-return]


@kind(ANY, "native_layer_norm _fused_rms_norm _unsafe_view squeeze")
def decomposed(d: Draw, shape: Shape) -> nn.Module | None:
    names = ["_unsafe_view", "_softmax", "squeeze"]
    if shape[-1] > 1:
        names += ["native_layer_norm", "_fused_rms_norm"]
    if shape[0] > 1:
        names.append("split.sizes")
    return With(_decomposed, d.one_of(*names), scale=shape[-1:], shift=shape[-1:])


@kind("image tokens", "transpose.int linear")
def samples_second(d: Draw, shape: Shape) -> nn.Module:
    inner = nn.Sequential(nn.Linear(shape[-1], d.integer(1, 4)), nn.ReLU())
    return With(_samples_last, inner=inner)


@kind(ANY, "mean.dim sum.dim_IntList")
def reduction(d: Draw, shape: Shape) -> nn.Module:
    dims = tuple(sorted({d.integer(1, len(shape)) for _ in range(d.integer(1, 3))}))
    function = d.one_of(torch.mean, torch.sum)
    return Call(function, dims, keepdim=True)


@kind(ANY, "layer_norm rms_norm")
def layer_norm(d: Draw, shape: Shape) -> nn.Module | None:
    if shape[-1] < 2:
        return None
    return d.one_of(nn.LayerNorm, nn.RMSNorm)(shape[-1])  # type: ignore[no-any-return]


def _centred(y: Tensor, dim: int) -> Tensor:
    return y - y.mean(dim, keepdim=True)


def _normalised(y: Tensor, dim: int) -> Tensor:
    centred = y - y.mean(dim, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim, keepdim=True) + 1e-3)


@kind(ANY, "sub.Tensor")
def centred(d: Draw, shape: Shape) -> nn.Module | None:
    dim = d.dim(shape)
    if shape[dim - 1 if dim > 0 else dim] < 2:
        return None
    return Call(d.one_of(_centred, _normalised), dim)
