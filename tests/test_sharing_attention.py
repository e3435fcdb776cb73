"""Sharing Ratio Decomposition of attention: the vector of a token over all heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rapkernels as rk
from rapkernels.errors import UnsupportedOperationError
from tests.networks import Function, conv, drawn, images, seeded
from tests.test_sharing_ratio import (
    Ratios,
    forward_fields,
    of_convolution,
    of_sum,
    pixels,
    ratio,
    vector,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]

Attend = Callable[[Any, Tensor], Tensor]
Move = Callable[[Tensor], Tensor]


def _heads(m: Any, y: Tensor) -> tuple[Tensor, ...]:
    return m.qkv(y).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[no-any-return]


def _fused(m: Any, y: Tensor) -> Tensor:
    found = functional.scaled_dot_product_attention(*_heads(m, y))
    return m.out(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _by_einsum(m: Any, y: Tensor) -> Tensor:
    q, k, v = _heads(m, y)
    weights = torch.softmax(torch.einsum("nhjc,nhic->nhji", q, k) / 2, -1)
    return m.out(torch.einsum("nhji,nhic->njhc", weights, v).flatten(2))  # type: ignore[no-any-return]


def _by_batches(m: Any, y: Tensor) -> Tensor:
    """Samples and heads in one dimension, tokens first, as in torch.nn.MultiheadAttention."""
    tokens = y.shape[1]
    q, k, v = (
        part.reshape(tokens, -1, 4).transpose(0, 1)
        for part in m.qkv(y.transpose(0, 1)).chunk(3, -1)
    )
    found = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, -1), v)
    found = found.transpose(0, 1).reshape(tokens, y.shape[0], 8)
    return m.out(found).transpose(0, 1)  # type: ignore[no-any-return]


WRITTEN: dict[str, Attend] = {"fused": _fused, "einsum": _by_einsum, "batches": _by_batches}


def build(attend: Attend) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.patches(x).flatten(2).transpose(1, 2)
        y = m.last(y + attend(m, m.norm(y)))
        return m.fc(y.mean(1))  # type: ignore[no-any-return]

    return seeded(
        lambda: Function(
            run,
            patches=conv(3, 8, 2, stride=2, padding=0),
            qkv=nn.Linear(8, 24),
            out=nn.Linear(8, 8),
            norm=nn.LayerNorm(8),
            last=nn.Dropout(),
            fc=nn.Linear(8, 5),
        )
    )


def of_attention(weights: Tensor, values: Tensor) -> tuple[Tensor, Ratios]:
    """``mu_ij = <A_ij v_i, o_j> / |o_j|^2``; weights ``(H, L, L)``, values ``(H, L, D)``."""
    found: Ratios = {}
    out = (weights @ values).transpose(1, 2).flatten(0, 1)
    for j in range(weights.shape[1]):
        messages = weights[:, j, :, None] * values
        found[(j,)] = [
            {
                (i,): ratio(messages[:, i].flatten(), vector(out, (j,)))
                for i in range(len(messages[0]))
            }
        ]
    return out, found


@torch.no_grad()
@pytest.mark.parametrize("written", WRITTEN)
def test_receptive_fields_equal_the_definition(written: str, backend: Any) -> None:
    model: Any = build(WRITTEN[written])
    x = images(2)
    explainer = rk.SharingRatio(model, layer="last", backend=backend)
    fields = {j: explainer.receptive_field(x, "last", (j,)) for j in (0, 4)}
    for n in range(2):
        y, ratios = of_convolution(model.patches, x[n])
        sources = {
            (row * 3 + col,): field
            for (row, col), field in forward_fields(ratios, pixels(x[n])).items()
        }
        y = y.flatten(1)
        q, k, v = (part[0] for part in _heads(model, model.norm(y.T[None])))
        out, ratios = of_attention(torch.softmax(q @ k.mT / 2, -1), v)
        mixed = forward_fields(ratios, sources)
        # A linear layer of one token, and a normalisation, have one sender.
        _, ratios = of_sum(y, model.out(out.T).T)
        expected = forward_fields(ratios, sources, mixed)
        for j, field in fields.items():
            torch.testing.assert_close(field[n], expected[(j,)], rtol=0, atol=1e-11)
            assert float(field[n].sum()) == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("written", ["einsum", "batches"])
def test_maps_do_not_depend_on_how_attention_is_written(written: str, backend: Any) -> None:
    maps = [
        rk.SharingRatio(build(WRITTEN[name]), "last", backend=backend).attribute_targets(
            images(), [1, 2, 4]
        )
        for name in ("fused", written)
    ]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-11 * float(maps[0].abs().max()))


@pytest.mark.parametrize("written", WRITTEN)
def test_steps_conserve(written: str, backend: Any) -> None:
    """Also where vectors are by sample and the sums of a step by head of a sample."""
    explainer = rk.SharingRatio(build(WRITTEN[written]), "last", backend=backend)
    _, report = explainer.attribute(images(), 1, return_report=True)
    assert float(report.worst().error.max()) < 1e-12


def _vision_transformer(models: Any) -> nn.Module:
    return models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)  # type: ignore[no-any-return]


def _swin(models: Any) -> nn.Module:
    return models.SwinTransformer([4, 4], 8, [2, 1], [2, 4], [4, 4], num_classes=5)  # type: ignore[no-any-return]


def _convnext(models: Any) -> nn.Module:
    settings = models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)
    return models.ConvNeXt(list(settings), num_classes=5)  # type: ignore[no-any-return]


# The network, and a layer behind all of its blocks.
MODELS: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "vision transformer": (_vision_transformer, "encoder.ln"),
    "swin": (_swin, "norm"),
    "convnext": (_convnext, "features"),
}


def redrawn(module: nn.Module) -> nn.Module:
    """Heads and class tokens start as zeros."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


@pytest.mark.parametrize("name", MODELS)
def test_torchvision_networks(name: str) -> None:
    make, layer = MODELS[name]
    models = pytest.importorskip("torchvision").models
    model, x = seeded(lambda: redrawn(make(models))), drawn(2, 3, 32, 32).double()
    for start in (None, layer):
        explainer = rk.SharingRatio(model, start)
        relevance, report = explainer.attribute(x, 1, return_report=True)
        assert relevance.shape == (2, 32, 32)
        assert bool(relevance.any())
        assert float(report.worst().error.max()) < 1e-12
        absorbed = sum(row.absorbed for row in report.rows)
        if name != "vision transformer":
            # There the class token takes a share; nothing else absorbs.
            torch.testing.assert_close(absorbed, torch.zeros(2, dtype=torch.float64))
        torch.testing.assert_close(
            relevance.sum((1, 2)) + absorbed, report.rows[0].received, rtol=1e-9, atol=1e-9
        )


# The same written in two ways: channels are found in both.
MOVED: dict[str, tuple[Move, Move]] = {
    "rot90": (lambda y: y.rot90(1, (1, 2)), lambda y: y.flip(2).transpose(1, 2)),
    "rot90 twice": (lambda y: y.rot90(2, (1, 2)), lambda y: y.flip(1, 2)),
    "broadcast_to": (
        lambda y: torch.broadcast_to(y, (2, *y.shape)).transpose(0, 1).mean(1),
        lambda y: y.expand(2, *y.shape).transpose(0, 1).mean(1),
    ),
}


def _around(run: Attend) -> nn.Module:
    return Function(run, a=conv(3), fc=nn.Linear(144, 5))


@pytest.mark.parametrize("name", MOVED)
def test_channels_are_followed_as_they_move(name: str) -> None:
    def run(m: Any, x: Tensor, move: Move) -> Tensor:
        y = move(m.a(x))
        return m.fc((y + torch.relu(y.flip(1))).flatten(1))  # type: ignore[no-any-return]

    maps = []
    for move in MOVED[name]:
        moved = partial(run, move=move)
        model = seeded(partial(_around, moved))
        maps.append(rk.SharingRatio(model, "").attribute(images(), 1))
    torch.testing.assert_close(*maps, rtol=0, atol=1e-11 * float(maps[0].abs().max()))


def test_channels_that_several_indices_pick_are_refused() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        picked = m.a(x).flatten(2)[:, [[0, 3], [2, 1]], [[0, 1], [2, 3]]]
        return m.fc((picked + torch.relu(picked)).flatten(1))  # type: ignore[no-any-return]

    model = seeded(lambda: Function(run, a=conv(3), fc=nn.Linear(4, 5)))
    with pytest.raises(UnsupportedOperationError, match="which dimensions of its value hold"):
        rk.SharingRatio(model, "").attribute(images(), 1)
