"""Sharing Ratio Decomposition of networks, against the definition evaluated by brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from tests.networks import Function, conv, images, network, norm, seeded

# One step of a network: positions of its output -> {position of an input: sharing ratio}, by input.
Ratios = dict[tuple[int, ...], list[dict[tuple[int, ...], float]]]


def positions(value: Tensor) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(size) for size in value.shape[1:])))


def vector(value: Tensor, position: tuple[int, ...]) -> Tensor:
    return value[(slice(None), *position)]


def ratio(message: Tensor, whole: Tensor) -> float:
    return float(message @ whole / (whole @ whole)) if float(whole @ whole) else 0.0


def of_convolution(module: nn.Conv2d, x: Tensor) -> tuple[Tensor, Ratios]:
    """Messages ``W_ij v_i + b / |RF_j|`` of each position in the image that a window covers."""
    z = module(x[None])[0]
    found: Ratios = {}
    for position in positions(z):
        taps: dict[tuple[int, ...], Tensor] = {}
        for tap in itertools.product(*(range(size) for size in module.kernel_size)):
            source = tuple(
                p * s - pad + t * d
                for p, s, pad, t, d in zip(
                    position, module.stride, module.padding, tap, module.dilation, strict=True
                )
            )
            if all(0 <= i < size for i, size in zip(source, x.shape[1:], strict=True)):
                weight = module.weight[(slice(None), slice(None), *tap)]
                taps[source] = weight @ vector(x, source)
        share = 0 if module.bias is None else module.bias / len(taps)
        whole = vector(z, position)
        found[position] = [{i: ratio(m + share, whole) for i, m in taps.items()}]
    return z, found


def of_max_pool(x: Tensor, size: int, stride: int) -> tuple[Tensor, Ratios]:
    z = nn.functional.max_pool2d(x[None], size, stride)[0]
    found: Ratios = {}
    for row, col in positions(z):
        whole = vector(z, (row, col))
        shares: dict[tuple[int, ...], float] = {}
        for channel in range(x.shape[0]):
            window = x[channel, row * stride :, col * stride :][:size, :size]
            winner = int(window.flatten().argmax())
            source = (
                row * stride + winner // window.shape[1],
                col * stride + winner % window.shape[1],
            )
            square = float(whole[channel] ** 2 / (whole @ whole)) if float(whole @ whole) else 0.0
            shares[source] = shares.get(source, 0.0) + square
        found[(row, col)] = [shares]
    return z, found


def of_average_pool(x: Tensor, size: int) -> tuple[Tensor, Ratios]:
    z = nn.functional.avg_pool2d(x[None], size)[0]
    found: Ratios = {}
    for row, col in positions(z):
        whole = vector(z, (row, col))
        sources = itertools.product(
            range(row * size, (row + 1) * size), range(col * size, (col + 1) * size)
        )
        found[(row, col)] = [{i: ratio(vector(x, i) / size**2, whole) for i in sources}]
    return z, found


def of_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Ratios]:
    z = a + b
    return z, {
        p: [{p: ratio(vector(part, p), vector(z, p))} for part in (a, b)] for p in positions(z)
    }


def of_concatenation(a: Tensor, b: Tensor) -> tuple[Tensor, Ratios]:
    z = torch.cat([a, b])
    return z, {
        p: [
            {p: ratio(torch.cat([vector(a, p), 0 * vector(b, p)]), vector(z, p))},
            {p: ratio(torch.cat([0 * vector(a, p), vector(b, p)]), vector(z, p))},
        ]
        for p in positions(z)
    }


Fields = dict[tuple[int, ...], Tensor]


def forward_fields(ratios: Ratios, *inputs: Fields) -> Fields:
    """``ERF(v_j) = sum_i mu_ij ERF(v_i)``, the definition, position by position."""
    return {
        position: sum(
            mu * fields[source]
            for part, fields in zip(parts, inputs, strict=True)
            for source, mu in part.items()
        )
        for position, parts in ratios.items()
    }


def pixels(x: Tensor) -> Fields:
    fields = {}
    for position in positions(x):
        fields[position] = torch.zeros(x.shape[1:], dtype=x.dtype)
        fields[position][position] = 1
    return fields


def folded(module: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    return fuse_conv_bn_eval(module, bn)


def _forward(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.bn(m.a(x)))
    y = m.pool(y)
    z = m.add(torch.relu(m.b(y)) + m.skip(y))
    w = m.cat(torch.cat([z, m.c(z)], 1))
    v = m.last(m.d(m.mean(w)))
    return m.fc(v.flatten(1))


def build() -> nn.Module:
    return seeded(
        lambda: Function(
            _forward,
            a=conv(3, 4, 3, stride=1),
            bn=norm(),
            pool=nn.MaxPool2d(3, 2),
            b=conv(4, 5),
            skip=conv(4, 5, 1),
            add=nn.ReLU(),
            c=conv(5, 3, 3, dilation=2, padding=2),
            cat=nn.Hardtanh(-2.0, 2.0),
            mean=nn.AvgPool2d(2),
            d=conv(8, 6, 2, padding=1),
            last=nn.ReLU(),
            fc=nn.Linear(6 * 9, 5),
        )
    )


def brute_force(m: Any, x: Tensor) -> dict[str, tuple[Tensor, Fields]]:
    """Value and receptive fields of each layer, for one image ``(3, H, W)``."""
    z, ratios = of_convolution(folded(m.a, m.bn), x)
    y, fields = torch.relu(z), forward_fields(ratios, pixels(x))
    y, ratios = of_max_pool(y, 3, 2)
    pooled = forward_fields(ratios, fields)
    b, ratios_b = of_convolution(m.b, y)
    skip, ratios_skip = of_convolution(m.skip, y)
    z, ratios = of_sum(torch.relu(b), skip)
    added = forward_fields(
        ratios, forward_fields(ratios_b, pooled), forward_fields(ratios_skip, pooled)
    )
    z = torch.relu(z)
    c, ratios_c = of_convolution(m.c, z)
    w, ratios = of_concatenation(z, c)
    joined = forward_fields(ratios, added, forward_fields(ratios_c, added))
    w = w.clamp(-2, 2)
    mean, ratios = of_average_pool(w, 2)
    averaged = forward_fields(ratios, joined)
    d, ratios = of_convolution(m.d, mean)
    last = forward_fields(ratios, averaged)
    return {
        "pool": (y, pooled),
        "add": (z, added),
        "cat": (w, joined),
        "mean": (mean, averaged),
        "last": (torch.relu(d), last),
    }


@torch.no_grad()
def test_receptive_fields_equal_the_definition(backend: Any) -> None:
    model, x = build(), images(2, 10)
    explainer = rk.SharingRatio(model, backend=backend)
    for n in range(2):
        for layer, (value, fields) in brute_force(model, x[n]).items():
            for position in [(0, 0), tuple(size // 2 for size in value.shape[1:])]:
                field = explainer.receptive_field(x, layer, position)[n]
                torch.testing.assert_close(field, fields[position], rtol=0, atol=1e-10)
                assert float(field.sum()) == pytest.approx(1, abs=1e-10)


def test_maps_equal_the_definition(backend: Any) -> None:
    model, x = build(), images(2, 10)
    relevance = rk.SharingRatio(model, backend=backend).attribute(x, 2)
    assert relevance.shape == (2, 10, 10)
    for n in range(2):
        with torch.no_grad():
            value, fields = brute_force(model, x[n])["last"]
        gradient = model.fc.weight[2].detach().view_as(value)
        expected = sum(
            float(vector(value, p) @ vector(gradient, p)) * field for p, field in fields.items()
        )
        torch.testing.assert_close(relevance[n], expected, rtol=0, atol=1e-10)
        logit = model(x)[n, 2] - model.fc.bias[2]
        torch.testing.assert_close(relevance[n].sum(), logit.detach(), rtol=0, atol=1e-10)


def test_normalised_start(backend: Any) -> None:
    model, x = build(), images(2, 10)
    logit = model(x)[:, 2].detach()[:, None, None]
    plain = rk.SharingRatio(model, backend=backend).attribute(x, 2)
    shares = rk.SharingRatio(model, start="normalised", backend=backend).attribute(x, 2)
    torch.testing.assert_close(shares, plain / logit)


@pytest.mark.parametrize("name", ["residual", "concatenated", "pads", "pools", "shared", "sums"])
def test_each_step_conserves(name: str, backend: Any) -> None:
    explainer = rk.SharingRatio(network(name), backend=backend)
    relevance, report = explainer.attribute(images(), 1, return_report=True)
    assert float(report.worst().error.max()) < 1e-12
    torch.testing.assert_close(report.total, relevance.flatten(1).sum(1))


def test_relevance_of_layers_is_one_number_for_each_position(backend: Any) -> None:
    model, x = build(), images(2, 10)
    explainer = rk.SharingRatio(model, backend=backend)
    relevance, layers = explainer.attribute(x, 2, layers=["last", "mean", "pool"])
    assert layers["last"].shape == (2, 3, 3)
    assert layers["mean"].shape == (2, 2, 2)
    assert layers["pool"].shape == (2, 4, 4)
    for map_ in layers.values():
        torch.testing.assert_close(map_.flatten(1).sum(1), relevance.flatten(1).sum(1))


def test_a_vector_of_a_linear_layer(backend: Any) -> None:
    model = network("layers")
    explainer = rk.SharingRatio(model, backend=backend)
    field = explainer.receptive_field(images(), "7")
    assert field.shape == (2, 6, 6)
    torch.testing.assert_close(field.flatten(1).sum(1), torch.ones(2, dtype=torch.float64))
    with pytest.raises(rk.errors.ArgumentError, match="position must be 0 ints"):
        explainer.receptive_field(images(), "7", (1, 1))
    assert explainer.receptive_field(images(0), "1", (0, 0)).shape == (0, 6, 6)
