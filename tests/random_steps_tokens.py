"""The kinds of steps of random networks whose values are tokens, (L, C): attention."""

# All steps are drawn by the same call.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.random_networks import Draw, Shape, With, kind

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) / 2, -1)


_MIXES: dict[str, Mix] = {
    "fused": functional.scaled_dot_product_attention,
    "causal": lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    "by hand": lambda q, k, v: _weights(q, k) @ v,
    "bmm": lambda q, k, v: torch.bmm(_weights(q, k), v),
    "einsum": lambda q, k, v: torch.einsum("nij,njc->nic", _weights(q, k), v),
    "dropped": lambda q, k, v: functional.dropout(_weights(q, k), 0.1, False) @ v,
    "special": lambda q, k, v: torch.special.softmax(q @ k.transpose(-2, -1), -1) @ v,
    "decomposed": lambda q, k, v: torch.ops.aten._softmax(q @ k.mT, -1, False) @ v,
    "factorised": lambda q, k, v: q @ (torch.softmax(k, -2).mT @ v),
    "baddbmm": lambda q, k, v: torch.baddbmm(v, _weights(q, k), v, beta=0.5, alpha=2),
    "baddbmm of scores": lambda q, k, v: torch.bmm(
        torch.softmax(torch.baddbmm(q[:, :1, :1], q, k.mT, beta=0, alpha=0.5), -1), v
    ),
}


def _attended(m: Any, y: Tensor) -> Tensor:
    mix, heads = m.settings
    q, k, v = m.qkv(y).chunk(3, -1)
    if heads > 1:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    found = _MIXES[mix](q, k, v)
    out: Tensor = m.out(found.transpose(1, 2).flatten(2) if heads > 1 else found)
    return out


@kind(
    "tokens",
    "scaled_dot_product_attention bmm baddbmm einsum matmul softmax.int special_softmax _softmax",
)
def attention(d: Draw, shape: Shape) -> nn.Module:
    mix = d.one_of(*_MIXES)
    heads = 1 if "bmm" in mix or mix == "einsum" else d.one_of(1, 2)
    width = 4
    qkv, out = nn.Linear(shape[-1], 3 * width), nn.Linear(width, shape[-1])
    return With(_attended, (mix, heads), qkv=qkv, out=out)


def _masked(m: Any, y: Tensor) -> Tensor:
    q, k = m.q(y), m.k(y)
    return functional.scaled_dot_product_attention(q, k, m.v(y), attn_mask=m.bias, scale=0.3)


@kind("tokens", "scaled_dot_product_attention")
def biased_attention(d: Draw, shape: Shape) -> nn.Module:
    layers = {name: nn.Linear(shape[-1], shape[-1]) for name in ("q", "k", "v")}
    return With(_masked, bias=(shape[0], shape[0]), **layers)


def _multiheaded(m: Any, y: Tensor) -> Tensor:
    found: Tensor = m.heads(y, y, y, need_weights=m.settings)[0]
    return found + y


@kind("tokens", "scaled_dot_product_attention")
def multihead_attention(d: Draw, shape: Shape) -> nn.Module | None:
    if shape[-1] % 2:
        return None
    return With(_multiheaded, d.flag(), heads=nn.MultiheadAttention(shape[-1], 2, batch_first=True))


def _attends_to_itself(m: Any, y: Tensor) -> Tensor:
    if m.settings == "fused":
        return functional.scaled_dot_product_attention(y, y, y)
    return torch.softmax(y @ y.transpose(-1, -2), -1) @ y


@kind("tokens", "scaled_dot_product_attention")
def bare_attention(d: Draw, shape: Shape) -> nn.Module:
    """No projection: queries, keys and values are one value."""
    return With(_attends_to_itself, d.one_of("fused", "by hand"))


def _pooled(m: Any, y: Tensor) -> Tensor:
    """Attention pooling: a learned query."""
    weights = torch.softmax(m.score(y), 1)
    return (weights * y).sum(1, keepdim=True) if m.settings else weights.transpose(1, 2) @ y


@kind("tokens", "sum.dim_IntList matmul")
def attention_pool(d: Draw, shape: Shape) -> nn.Module:
    return With(_pooled, d.flag(), score=nn.Linear(shape[-1], 1))


def _windowed(m: Any, y: Tensor) -> Tensor:
    rows = y.reshape(y.shape[0] * 2, -1, y.shape[-1])
    found: Tensor = m.inner(rows).reshape(y.shape[0], -1, m.settings)
    return found


@kind("tokens", "reshape linear")
def windows(d: Draw, shape: Shape) -> nn.Module | None:
    """Parts of a sample are rows of the first dimension."""
    if shape[0] % 2:
        return None
    width = d.integer(1, 4)
    return With(_windowed, width, inner=nn.Sequential(nn.Linear(shape[-1], width), nn.ReLU()))


def _mixed_tokens(m: Any, y: Tensor) -> Tensor:
    found: Tensor = m.inner(y.transpose(1, 2)).transpose(1, 2)
    return found


@kind("tokens", "linear transpose.int gelu")
def token_mixer(d: Draw, shape: Shape) -> nn.Module:
    width = d.integer(1, 4)
    wide, narrow = nn.Linear(shape[0], width, d.flag()), nn.Linear(width, shape[0])
    return With(_mixed_tokens, inner=nn.Sequential(wide, nn.GELU(), narrow))
