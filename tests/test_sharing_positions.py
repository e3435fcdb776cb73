"""Sharing Ratio Decomposition of linear layers over positions, as in MLP-mixers."""

from __future__ import annotations

from collections.abc import Callable
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
    positions,
    ratio,
    vector,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]

Mix = Callable[[Any, Tensor], Tensor]


def of_positions(module: nn.Linear, x: Tensor) -> tuple[Tensor, Ratios]:
    """Messages ``w_ij x_j + b_i / L`` over the last dimension of ``(C, *positions, L)``."""
    z, found = module(x), {}
    for *before, i in positions(z):
        whole = vector(z, (*before, i))
        share = 0 if module.bias is None else module.bias[i] / x.shape[-1]
        messages = {
            (*before, j): module.weight[i, j] * vector(x, (*before, j)) + share
            for j in range(x.shape[-1])
        }
        found[(*before, i)] = [{j: ratio(message, whole) for j, message in messages.items()}]
    return z, found


def _forward(m: Any, x: Tensor) -> Tensor:
    y = m.patches(x).flatten(2).transpose(1, 2)
    y = y + m.narrow(functional.gelu(m.wide(m.norm(y).transpose(1, 2)))).transpose(1, 2)
    return m.fc(m.last(m.channels(y)).mean(1))  # type: ignore[no-any-return]


def mixer() -> nn.Module:
    return seeded(
        lambda: Function(
            _forward,
            patches=conv(3, 5, 2, stride=2, padding=0),
            norm=nn.LayerNorm(5),
            wide=nn.Linear(9, 7),
            narrow=nn.Linear(7, 9),
            channels=nn.Linear(5, 4),
            last=nn.GELU(),
            fc=nn.Linear(4, 6),
        )
    )


@torch.no_grad()
def test_receptive_fields_equal_the_definition(backend: Any) -> None:
    model: Any = mixer()
    x = images(2)
    explainer = rk.SharingRatio(model, backend=backend)
    given = {
        layer: {j: explainer.receptive_field(x, layer, (j,)) for j in (0, 4)}
        for layer in ("wide", "narrow", "last")
    }
    for n in range(2):
        y, ratios = of_convolution(model.patches, x[n])
        patches = {
            (row * 3 + col,): field
            for (row, col), field in forward_fields(ratios, pixels(x[n])).items()
        }
        y = y.flatten(1)
        # Normalisations, activation functions and layers of one token have one sender.
        wide, ratios = of_positions(model.wide, model.norm(y.T).T)
        expected = {"wide": forward_fields(ratios, patches)}
        narrow, ratios = of_positions(model.narrow, functional.gelu(wide))
        expected["narrow"] = forward_fields(ratios, expected["wide"])
        _, ratios = of_sum(y, narrow)
        expected["last"] = forward_fields(ratios, patches, expected["narrow"])
        for layer, fields in given.items():
            for j, field in fields.items():
                torch.testing.assert_close(field[n], expected[layer][(j,)], rtol=0, atol=1e-11)
                assert float(field[n].sum()) == pytest.approx(1, abs=1e-11)


def test_targets_rows_and_sums(backend: Any) -> None:
    model, x = mixer(), images(3)
    explainer = rk.SharingRatio(model, backend=backend)
    many = explainer.attribute_targets(x, [0, 4])
    _, report = explainer.attribute(x, 4, return_report=True)
    assert float(report.worst().error.max()) < 1e-12
    for place, target in enumerate((0, 4)):
        relevance, layers = explainer.attribute(x, target, layers=["wide", "narrow"])
        torch.testing.assert_close(many[place], relevance, rtol=0, atol=1e-12)
        alone = explainer.attribute(x[1:2], target)
        torch.testing.assert_close(relevance[1:2], alone, rtol=0, atol=1e-12)
        # Of each position the layers have one number, whichever dimension it lies along.
        assert layers["wide"].shape == (3, 7)
        assert layers["narrow"].shape == (3, 9)
        # All is conserved up to the start: activation times gradient of the head, less its bias.
        logit = model(x)[:, target].detach() - model.fc.bias[target].detach()
        torch.testing.assert_close(relevance.sum((1, 2)), logit, rtol=0, atol=1e-11)


def test_native_equals_reference() -> None:
    maps = [
        rk.SharingRatio(mixer(), backend=backend).attribute_targets(images(), [1, 2])  # type: ignore[arg-type]
        for backend in ("native", "reference")
    ]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types(dtype: torch.dtype) -> None:
    """Halves keep shares in their type between layers: some 10 roundings on the way."""
    x = images()
    exact = rk.SharingRatio(mixer()).attribute(x, 1)
    relevance = rk.SharingRatio(mixer().to(dtype)).attribute(x.to(dtype), 1)
    assert relevance.dtype == dtype
    error = (relevance.double() - exact).norm() / exact.norm()
    assert float(error) < 64 * torch.finfo(dtype).eps


def _rows(m: Any, y: Tensor) -> Tensor:
    return m.mix(y)  # type: ignore[no-any-return]


def _rows_before_samples(m: Any, y: Tensor) -> Tensor:
    return m.mix(y.permute(2, 0, 1, 3)).permute(1, 2, 0, 3)  # type: ignore[no-any-return]


def _rows_as_samples(m: Any, y: Tensor) -> Tensor:
    rows = y.transpose(1, 2).reshape(-1, *y.shape[1:2], y.shape[3])
    return m.mix(rows).view(-1, y.shape[2], y.shape[1], y.shape[3]).transpose(1, 2)  # type: ignore[no-any-return]


def _one_by_one(m: Any, y: Tensor) -> Tensor:
    return torch.stack([m.mix(row) for row in y.unbind(2)], 2)


def _by_einsum(m: Any, y: Tensor) -> Tensor:
    return torch.einsum("ij,nchj->nchi", m.mix.weight, y)


def _by_matmul(m: Any, y: Tensor) -> Tensor:
    return (m.mix.weight @ y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


WITH_BIAS: dict[str, Mix] = {
    "rows before samples": _rows_before_samples,
    "rows as samples": _rows_as_samples,
    "one by one": _one_by_one,
}
WITHOUT_BIAS: dict[str, Mix] = {**WITH_BIAS, "einsum": _by_einsum, "matmul": _by_matmul}


def _of_rows(mix: Mix, bias: bool) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(m.last(mix(m, m.a(x))).mean((2, 3)))  # type: ignore[no-any-return]

    return seeded(
        lambda: Function(
            run, a=conv(3), mix=nn.Linear(6, 6, bias), last=nn.ReLU(), fc=nn.Linear(4, 5)
        )
    )


@torch.no_grad()
def test_rows_of_an_image_equal_the_definition(backend: Any) -> None:
    model: Any = _of_rows(_rows, bias=True)
    x = images(1)
    field = rk.SharingRatio(model, backend=backend).receptive_field(x, "last", (2, 5))
    y, ratios = of_convolution(model.a, x[0])
    fields = forward_fields(ratios, pixels(x[0]))
    _, ratios = of_positions(model.mix, y)
    expected = forward_fields(ratios, fields)[(2, 5)]
    torch.testing.assert_close(field[0], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("written", "bias"),
    [*((name, True) for name in WITH_BIAS), *((name, False) for name in WITHOUT_BIAS)],
)
def test_maps_do_not_depend_on_how_rows_are_mixed(written: str, bias: bool, backend: Any) -> None:
    maps = [
        rk.SharingRatio(_of_rows(mix, bias), backend=backend).attribute_targets(images(), [1, 3])
        for mix in (_rows, WITHOUT_BIAS[written])
    ]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-11 * float(maps[0].abs().max()))


def test_positions_whose_vector_is_0_absorb(backend: Any) -> None:
    model: Any = _of_rows(_rows, bias=True)
    with torch.no_grad():
        model.mix.weight[2:4] = 0
        model.mix.bias[2:4] = 0
    explainer = rk.SharingRatio(model, layer="mix", backend=backend)
    relevance, report = explainer.attribute(images(), 1, return_report=True)
    assert relevance.isfinite().all()
    # The start is activation times gradient, which is 0 there.
    assert float(report.worst().error.max()) < 1e-12
    with torch.no_grad():
        for column, total in ((2, 0.0), (4, 1.0)):
            field = explainer.receptive_field(images(), "mix", (0, column))
            assert float(field[0].sum()) == pytest.approx(total, abs=1e-11)


def test_channels_before_the_samples_are_refused() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).flatten(2)
        return m.fc((y + m.b(y.transpose(0, 1)).transpose(0, 1)).mean(2))  # type: ignore[no-any-return]

    model = seeded(lambda: Function(run, a=conv(3), b=nn.Linear(36, 36), fc=nn.Linear(4, 5)))
    with pytest.raises(UnsupportedOperationError, match="which dimensions of its value hold"):
        rk.SharingRatio(model, "").attribute(images(), 1)


def _of_tokens(m: Any, x: Tensor) -> Tensor:
    return m.fc(torch.relu(m.b(m.norm(x))).mean(1))  # type: ignore[no-any-return]


def _of_columns(m: Any, x: Tensor) -> Tensor:
    return m.fc(torch.relu(m.b(m.norm(x.flatten(1)).unsqueeze(-1))).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("run", "inputs", "norm", "positions"), [(_of_tokens, 3, 3, 4), (_of_columns, 1, 12, 12)]
)
def test_layers_that_mix_no_positions(run: Mix, inputs: int, norm: int, positions: int) -> None:
    """Tokens that are the input, and columns of a table, have channels last behind a layer."""
    model = seeded(
        lambda: Function(run, norm=nn.LayerNorm(norm), b=nn.Linear(inputs, 5), fc=nn.Linear(5, 2))
    )
    x = drawn(2, 4, 3).double()
    _, layers = rk.SharingRatio(model, "b").attribute(x, 1, layers=["b"])
    assert layers["b"].shape == (2, positions)


def test_mixer_of_timm() -> None:
    timm = pytest.importorskip("timm")
    build = timm.models.mlp_mixer.MlpMixer
    model = seeded(lambda: build(5, 32, patch_size=8, num_blocks=2, embed_dim=16), torch.float32)
    nn.init.normal_(model.head.weight)  # type: ignore[union-attr, arg-type]
    x = drawn(2, 3, 32, 32)
    relevance, report = rk.SharingRatio(model).attribute(x, 1, return_report=True)
    assert relevance.shape == (2, 32, 32)
    # Sums of float32 values that are each rounded once.
    assert float(report.worst().error.max()) < 1e-6
    start = report.rows[0]
    error = (relevance.double().sum((1, 2)) - start.received).abs()
    assert bool((error < 1e-6 * start.magnitude).all())
