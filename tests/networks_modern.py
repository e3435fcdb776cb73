"""Small networks of gates, attention, normalisations and smooth activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def squeezed(m: Any, x: Tensor) -> Tensor:
    """Squeeze-and-excitation twice, and activations that are written out as products."""
    y = functional.silu(m.a(x), inplace=True)
    weights = y.mean((2, 3), keepdim=True)
    weights = torch.sigmoid(m.up(functional.relu(m.down(weights), inplace=True)))
    y = weights * y
    y = functional.hardswish(m.b(y))
    weights = functional.hardsigmoid(m.up(functional.adaptive_avg_pool2d(y, 1)))
    y = y * weights
    y = y * torch.sigmoid(y) + functional.mish(y) * functional.relu6(y + 3) / 6
    return m.fc((y / y.detach().square().mean((1, 2, 3), keepdim=True).add(1).sqrt()).mean((2, 3)))


def attended(m: Any, x: Tensor) -> Tensor:
    """A transformer of one block by torch's own functions."""
    samples = x.shape[0]
    tokens = m.patches(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([m.token.weight.expand(samples, -1, -1), tokens], 1) + m.place.weight
    y = m.first(tokens)
    q, k, v = m.qkv(y).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4).unbind(0)
    y = functional.scaled_dot_product_attention(q, k, v)
    tokens = tokens + m.out(y.transpose(1, 2).flatten(2))
    y = m.second(tokens)
    tokens = tokens + m.down(functional.gelu(m.up(y)) * m.gate(y))
    return m.fc(m.last(tokens)[:, 0])


def multiheaded(m: Any, x: Tensor) -> Tensor:
    """torch's own multi-head attention, which puts tokens before samples."""
    tokens = m.patches(x).flatten(2).transpose(1, 2)
    y = m.first(tokens)
    tokens = tokens + m.heads(y, y, y, need_weights=False)[0]
    return m.fc(functional.gelu(m.up(tokens)).mean(1))


def windowed(m: Any, x: Tensor) -> Tensor:
    """Attention by hand, with a bias of the places, in shifted windows."""
    y = torch.roll(m.a(x), (1, 1), (2, 3)).permute(0, 2, 3, 1)
    y = y.reshape(x.shape[0], 2, 3, 2, 3, 4).transpose(2, 3).reshape(-1, 9, 4)
    y = m.first(y)
    q, k, v = m.qkv(y).chunk(3, dim=-1)
    weights = torch.softmax(q @ k.transpose(-2, -1) * 0.5 + m.place.weight, -1)
    y = m.out(functional.dropout(weights, 0.1, False) @ v)
    y = y + torch.einsum("nij,njc->nic", torch.softmax(weights, -1), v)
    y = y.reshape(x.shape[0], 2, 2, 3, 3, 4).transpose(2, 3).reshape(x.shape[0], 36, 4)
    return m.fc(y.mean(1))


def normalised(m: Any, x: Tensor) -> Tensor:
    """Every normalisation, also one that is written out; sizes that go down and up."""
    y = functional.leaky_relu(m.groups(m.a(x)), 0.1)
    y = functional.elu(m.instances(m.b(y)))
    y = functional.interpolate(functional.avg_pool2d(y, 2), scale_factor=2.0) + y
    y = functional.interpolate(y, (4, 5), mode="bilinear", align_corners=False)
    centred = y - y.mean(1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-5)
    y = functional.softplus(m.layer(y.permute(0, 2, 3, 1)))
    return m.fc(functional.prelu(y.permute(0, 3, 1, 2), m.slope.weight[0]).mean((2, 3)))


def decoded(m: Any, x: Tensor) -> Tensor:
    """An encoder and a decoder: transposed convolutions, and resizing of other kinds."""
    y = functional.relu(m.a(functional.interpolate(x, scale_factor=1.5, mode="bicubic")))
    y = functional.relu(m.norm(m.up(functional.max_pool2d(y, 2))))
    y = functional.glu(m.wide(y), 1)
    places = torch.tanh(m.places(y)).permute(0, 2, 3, 1)
    y = y + functional.grid_sample(y, places, align_corners=False)
    y = functional.interpolate(y, (7, 5), mode="bicubic", align_corners=True)
    y = functional.relu(m.back(functional.interpolate(y, (4, 4), mode="nearest-exact")))
    y = functional.avg_pool2d(y, 50, ceil_mode=True)
    return torch.addcmul(m.fc.bias, m.fc.weight[:, 0], m.fc(y.flatten(1)))


def chosen(m: Any, x: Tensor) -> Tensor:
    """What picks entries: by constants, by values, the largest and the smallest."""
    y = m.a(x)
    y = torch.where(y > 0, y, 0.1 * functional.relu(m.b(y)))
    y = torch.maximum(y, m.c(y).masked_fill(y > 1, 0.5)) + torch.minimum(y, y.abs())
    y = y[:, [0, 3, 3, 1], ::2]
    y = y.gather(3, y.argsort(3)) + y.square().tril(1).reshape_as(y)
    rows = functional.unfold(y, (1, 2)).unflatten(1, (4, 2)).amax(2)
    first = torch.stack([m.fc(rows.max(2)[0]), m.fc(rows.min(2)[0])])
    return first.mean(0)


def modules_of_decoded() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"a": nn.Conv2d(3, 4, 3), "wide": nn.Conv2d(6, 8, 1)}
    layers |= {"up": nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), "norm": nn.BatchNorm2d(6)}
    layers |= {"places": nn.Conv2d(4, 2, 1), "fc": nn.Linear(4, 5)}
    return layers | {"back": nn.ConvTranspose2d(4, 4, (2, 3), padding=(1, 0), dilation=2)}


def modules_of_chosen() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"a": nn.Conv2d(3, 4, 3, padding=1)}
    return layers | {"b": nn.Conv2d(4, 4, 1), "c": nn.Conv2d(4, 4, 1), "fc": nn.Linear(4, 5)}


def modules_of_attended() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {name: nn.LayerNorm(4) for name in ("first", "second", "last")}
    layers |= {name: nn.Linear(4, 6) for name in ("up", "gate")}
    layers |= {"qkv": nn.Linear(4, 12), "out": nn.Linear(4, 4), "down": nn.Linear(6, 4)}
    layers |= {"token": nn.Linear(4, 1), "place": nn.Linear(4, 10), "fc": nn.Linear(4, 5)}
    return layers | {"patches": nn.Conv2d(3, 4, 2, stride=2)}


def modules_of_multiheaded() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"patches": nn.Conv2d(3, 4, 2, stride=2)}
    layers |= {"first": nn.LayerNorm(4), "up": nn.Linear(4, 6), "fc": nn.Linear(6, 5)}
    return layers | {"heads": nn.MultiheadAttention(4, 2, batch_first=True)}


def modules_of_windowed() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"a": nn.Conv2d(3, 4, 3, padding=1), "first": nn.LayerNorm(4)}
    layers |= {"qkv": nn.Linear(4, 12), "out": nn.Linear(4, 4)}
    return layers | {"place": nn.Linear(9, 9), "fc": nn.Linear(4, 5)}


def modules_of_normalised() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1)}
    layers |= {"groups": nn.GroupNorm(2, 4), "instances": nn.InstanceNorm2d(4, affine=True)}
    return layers | {"layer": nn.LayerNorm(4), "slope": nn.Linear(4, 1), "fc": nn.Linear(4, 5)}


def modules_of_squeezed() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1)}
    return layers | {"down": nn.Conv2d(4, 4, 1), "up": nn.Conv2d(4, 4, 1), "fc": nn.Linear(4, 5)}
