"""The kinds of steps of random networks whose values are feature maps, (C, *size)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.random_networks import Call, Draw, Shape, With, kind

_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORMS: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_FUNCTIONS: dict[str, dict[int, Any]] = {
    name: {n: getattr(functional, f"{name}{n}d") for n in (1, 2, 3)}
    for name in ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")
}


def _divisor(d: Draw, number: int) -> int:
    return int(d.one_of(*(n for n in range(1, number + 1) if number % n == 0)))


def _per_dim(d: Draw, count: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(d.integer(low, high) for _ in range(count))


@kind(
    "image",
    "conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding batch_norm",
)
def convolution(d: Draw, shape: Shape) -> nn.Module | None:
    channels, size = shape[0], shape[1:]
    groups = _divisor(d, channels)
    kernel = _per_dim(d, len(size), 1, 3)
    padding: Any = d.one_of(0, 1, "same", "valid", 2)
    stride: Any = 1 if padding == "same" else _per_dim(d, len(size), 1, 2)
    dilation = _per_dim(d, len(size), 1, 2)
    amount = padding if isinstance(padding, int) else 0
    spans = [step * (width - 1) + 1 for width, step in zip(kernel, dilation, strict=True)]
    if padding != "same" and any(
        edge + 2 * amount < span for edge, span in zip(size, spans, strict=True)
    ):
        return None
    mode = d.one_of("zeros", "zeros", "circular", "replicate", "reflect")
    needed = max(spans) if padding == "same" else amount
    if mode == "reflect" and (needed >= min(size) or len(size) == 3):
        mode = "zeros"
    if mode == "circular" and needed > min(size):
        mode = "zeros"
    layer = _CONVS[len(size)](
        channels,
        groups * d.integer(1, max(1, 4 // groups)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=d.flag(),
        padding_mode=mode,
    )
    if not d.flag():
        return layer
    norm = _NORMS[len(size)](layer.out_channels, affine=d.flag())
    return nn.Sequential(layer, norm, nn.ReLU(inplace=True))


@kind("image", "batch_norm")
def batch_norm(d: Draw, shape: Shape) -> nn.Module:
    return _NORMS[len(shape) - 1](shape[0], affine=d.flag())  # type: ignore[no-any-return]


@kind("image", "group_norm instance_norm")
def statistics_norm(d: Draw, shape: Shape) -> nn.Module | None:
    if math.prod(shape[1:]) < 2:
        return None
    if d.flag():
        return _INSTANCE_NORMS[len(shape) - 1](shape[0], affine=d.flag())  # type: ignore[no-any-return]
    return nn.GroupNorm(_divisor(d, shape[0]), shape[0])


def _first(y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    pool = kwargs.pop("pool")
    found: Tensor = pool(y, *args, return_indices=True, **kwargs)[0]
    return found


@kind(
    "image",
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool1d_with_indices",
)
def max_pool(d: Draw, shape: Shape) -> nn.Module | None:
    size = shape[1:]
    function = _FUNCTIONS["max_pool"][len(size)]
    kernel, dilation = _per_dim(d, len(size), 1, 3), d.integer(1, 2)
    padding = tuple(d.integer(0, width // 2) for width in kernel)
    settings = {
        "kernel_size": kernel,
        "stride": d.one_of(None, 1, 2, (2, *[1] * (len(size) - 1))),
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": d.flag(),
    }
    if any(
        edge + 2 * pad < dilation * (width - 1) + 1
        for edge, pad, width in zip(size, padding, kernel, strict=True)
    ):
        return None
    if d.flag():
        return Call(_first, pool=function, **settings)
    return Call(function, **settings)


@kind("image", "avg_pool1d avg_pool2d avg_pool3d")
def average_pool(d: Draw, shape: Shape) -> nn.Module | None:
    size = shape[1:]
    kernel = _per_dim(d, len(size), 1, 3)
    padding = tuple(d.integer(0, width // 2) for width in kernel)
    if any(edge < width for edge, width in zip(size, kernel, strict=True)):
        return None
    settings: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": d.one_of(None, 1, 2),
        "padding": padding,
        "ceil_mode": d.flag(),
        "count_include_pad": d.flag(),
    }
    if len(size) > 1:
        settings["divisor_override"] = d.one_of(None, 3)
    return Call(_FUNCTIONS["avg_pool"][len(size)], **settings)


@kind(
    "image",
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d",
)
def adaptive_pool(d: Draw, shape: Shape) -> nn.Module:
    size = tuple(d.integer(1, min(edge + 1, 4)) for edge in shape[1:])
    name = d.one_of("adaptive_avg_pool", "adaptive_max_pool")
    function = _FUNCTIONS[name][len(size)]
    return Call(function, size if len(size) > 1 else size[0])


@kind(
    "image",
    "upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec upsample_linear1d.vec "
    "upsample_bilinear2d.vec upsample_trilinear3d.vec",
)
def resampling(d: Draw, shape: Shape) -> nn.Module:
    size = shape[1:]
    settings: dict[str, Any] = {"size": tuple(d.integer(1, min(8, 2 * edge)) for edge in size)}
    if d.flag():
        settings = {"scale_factor": d.one_of(1.5, 2.0, 1.0)}
    if d.flag():
        names = {1: "linear", 2: "bilinear", 3: "trilinear"}
        settings |= {"mode": names[len(size)], "align_corners": d.flag()}
    return Call(functional.interpolate, **settings)


@kind(
    "image",
    "pad",
)
def pad(d: Draw, shape: Shape) -> nn.Module | None:
    size = shape[1:]
    mode = d.one_of("constant", "reflect", "replicate", "circular")
    amounts = list(_per_dim(d, 2 * len(size), 0, 2))
    if mode == "constant":
        if d.flag():
            amounts[0] = -1
            if size[-1] + amounts[1] < 2:
                return None
        if d.integer(0, 3) == 3:
            amounts += [1, 0]  # of the channels
        return Call(functional.pad, tuple(amounts), value=d.one_of(0.0, 0.5, -0.5))
    if mode == "reflect" and max(amounts) >= min(size):
        return None
    if mode == "circular" and max(amounts) > min(size):
        return None
    return Call(functional.pad, tuple(amounts), mode=mode)


@kind("image", "pad conv1d conv2d conv3d")
def padded_convolution(d: Draw, shape: Shape) -> nn.Module:
    """A zero pad that is part of the convolution after it."""
    amounts = _per_dim(d, 2 * len(shape[1:]), 0, 2)
    layer = _CONVS[len(shape) - 1](shape[0], d.integer(1, 4), 1, padding=d.integer(0, 1))
    return nn.Sequential(Call(functional.pad, amounts), layer)


@kind("image", "pixel_shuffle pixel_unshuffle channel_shuffle")
def shuffle(d: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) == 3 and shape[0] % 4 == 0 and d.flag():
        return nn.PixelShuffle(2)
    if len(shape) == 3 and not any(edge % 2 for edge in shape[1:]) and d.flag():
        return nn.PixelUnshuffle(2)
    if len(shape) == 3 and shape[0] > 1:
        return Call(torch.channel_shuffle, _divisor(d, shape[0]))
    return None


def _excited(m: Any, y: Tensor) -> Tensor:
    dims = tuple(range(2, y.dim()))
    weights = torch.sigmoid(m.up(functional.relu(m.down(y.mean(dims, keepdim=True)))))
    return y * weights if m.settings else weights * y


@kind("image", "sigmoid mul.Tensor mean.dim")
def squeeze_and_excitation(d: Draw, shape: Shape) -> nn.Module:
    conv = _CONVS[len(shape) - 1]
    return With(_excited, d.flag(), down=conv(shape[0], 2, 1), up=conv(2, shape[0], 1))


def _channels_last(m: Any, y: Tensor) -> Tensor:
    back = m.inner(y.movedim(1, -1)) if m.settings else m.inner(y.permute(0, *range(2, y.dim()), 1))
    found: Tensor = back.movedim(-1, 1)
    return found


@kind("image", "layer_norm linear movedim.int permute")
def channels_last(d: Draw, shape: Shape) -> nn.Module:
    layer = d.one_of(nn.LayerNorm, nn.Linear) if shape[0] > 1 else nn.Linear
    inner = layer(shape[0]) if layer is nn.LayerNorm else layer(shape[0], d.integer(1, 4))
    return With(_channels_last, d.flag(), inner=inner)


@kind("image", "feature_dropout feature_alpha_dropout")
def feature_dropout(d: Draw, shape: Shape) -> nn.Module:
    return nn.FeatureAlphaDropout(0.5) if d.flag() else _FEATURE_DROPOUTS[len(shape) - 1]()  # type: ignore[no-any-return]


_FEATURE_DROPOUTS: dict[int, Any] = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}


def _decomposed(m: Any, y: Tensor) -> Tensor:
    """What other operations are made of, called by itself; the value is (N, C, *size)."""
    aten, dims = torch.ops.aten, y.dim() - 2
    if m.settings == "convolution":
        return torch.convolution(
            y, m.weight, m.bias, [1] * dims, [1] * dims, [1] * dims, False, [0] * dims, 1
        )
    if m.settings == "batch_norm":
        return aten._native_batch_norm_legit_no_training(  # type: ignore[no-any-return]
            y, m.bias, m.bias, m.bias.detach(), m.bias.detach().square(), 0.1, 0.1
        )[0]
    if m.settings == "adaptive":
        pool = aten._adaptive_avg_pool2d if dims == 2 else aten._adaptive_avg_pool3d
        return pool(y, [1] * dims)  # type: ignore[no-any-return]
    if m.settings == "constant":
        return aten.constant_pad_nd(y, [1, 0], -0.3)  # type: ignore[no-any-return]
    if m.settings == "max":
        if dims == 2:
            return aten.max_pool2d_with_indices(y, [1, 1], [1, 1])[0]  # type: ignore[no-any-return]
        return aten.max_pool3d_with_indices(y, [1, 1, 1], [1, 1, 1])[0]  # type: ignore[no-any-return]
    name = f"{m.settings}_pad{dims}d"
    return getattr(aten, name)(y, [1, 0] * dims)  # type: ignore[no-any-return]


@kind(
    "image",
    "convolution _native_batch_norm_legit_no_training _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d constant_pad_nd max_pool2d_with_indices max_pool3d_with_indices "
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d",
)
def decomposed_image(d: Draw, shape: Shape) -> nn.Module:
    names = ["convolution", "batch_norm", "constant", "replication"]
    if len(shape) > 2:
        names += ["adaptive", "max"]
    if min(shape[1:]) > 1:
        names.append("reflection")
    weight = (shape[0], shape[0], *[2] * (len(shape) - 1))
    return With(_decomposed, d.one_of(*names), weight=weight, bias=shape[:1])


def _without_channels(y: Tensor, pool: Any) -> Tensor:
    return pool(y, (1, 2))  # type: ignore[no-any-return]


@kind("image", "avg_pool2d max_pool2d")
def pool_without_channels(d: Draw, shape: Shape) -> nn.Module | None:
    """(N, C, L) taken as N images of C by L."""
    if len(shape) != 2 or shape[1] < 2:
        return None
    return Call(_without_channels, d.one_of(functional.avg_pool2d, functional.max_pool2d))
