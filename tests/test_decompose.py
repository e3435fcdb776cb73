"""Operations that are others in one, and what picks entries: values and messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rapkernels as rk
from rapkernels.composites import Composite
from tests.networks import Function, drawn, seeded
from tests.test_operation_rules import EXPLAINERS, around, relevances, shares, tokens

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")

TRANSPOSED: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.ConvTranspose2d(4, 6, 3),
    "stride": lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(3, 2), output_padding=(2, 1)),
    "cropped": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=3, bias=False),
    "groups": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2, padding=(1, 0)),
    "signal": lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
    "volume": lambda: nn.ConvTranspose3d(4, 6, (1, 2, 3), stride=(1, 2, 1)),
}
SIZES = {1: (5,), 2: (4, 5), 3: (2, 3, 4)}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_are_their_matrix(name: str) -> None:
    layer: Any = seeded(TRANSPOSED[name])
    size = SIZES[layer.weight.dim() - 2]
    x = drawn(2, 4, *size, seed=3, dtype=torch.float64)
    entries = x[0].numel()
    inputs = torch.eye(entries, dtype=torch.float64).view(entries, 4, *size)
    with torch.no_grad():
        output = layer(x)
        nothing = layer(torch.zeros_like(x[:1]))
        matrix = (layer(inputs) - nothing).flatten(1).T
    linear = nn.Linear(entries, len(matrix)).double().requires_grad_(False)
    linear.weight.copy_(matrix)
    linear.bias.copy_(nothing.flatten())
    composite = Composite()
    sent = drawn(*output.shape, seed=4, dtype=torch.float64)
    model = nn.Sequential(layer, nn.Flatten()).eval()
    found = rk.LRP(model, composite).attribute(x, output_relevance=sent.flatten(1))
    model = nn.Sequential(nn.Flatten(), linear).eval()
    expected = rk.LRP(model, composite).attribute(x, output_relevance=sent.flatten(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_a_transposed_convolution_keeps_its_name_and_its_batch_norm() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, 2)
    model = seeded(lambda: nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()))
    plan = rk.RAP(model).plan(drawn(2, 4, 3, 3, dtype=torch.float64))
    rows = {row.node: row for row in plan.rows}
    assert rows["conv_transpose2d"].operation == "aten.conv2d.default"
    assert rows["batch_norm"].rule == "folded"
    assert rows["conv_transpose2d"].module == "0"


# The operation, and what it is the same as.
SAME: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor], Tensor]]] = {
    "addcmul": (
        lambda m, y: torch.addcmul(m.norm.bias, m.norm.weight, y, value=0.5),
        lambda m, y: m.norm.bias + 0.5 * (m.norm.weight * y),
    ),
    "addcmul of activations": (
        lambda _, y: torch.addcmul(y, torch.sigmoid(y), y.flip(1)),
        lambda _, y: y + torch.sigmoid(y) * y.flip(1),
    ),
    "addcdiv": (
        lambda m, y: torch.addcdiv(m.norm.bias, y, m.norm.weight),
        lambda m, y: m.norm.bias + y / m.norm.weight,
    ),
    "baddbmm": (
        lambda _, y: torch.baddbmm(y, torch.softmax(y @ y.mT, -1), y, beta=2, alpha=3),
        lambda _, y: 2 * y + 3 * (torch.softmax(y @ y.mT, -1) @ y),
    ),
    "glu": (
        lambda m, y: functional.glu(m.wide(y)),
        lambda m, y: m.wide(y)[..., :4] * torch.sigmoid(m.wide(y)[..., 4:]),
    ),
    "reshape_as": (
        lambda _, y: y.flatten(1).reshape_as(y.flatten(1, 2)).unflatten(1, (6, 4)),
        lambda _, y: y,
    ),
    "view_as": (lambda _, y: y.view(-1, 24).view_as(y), lambda _, y: y),
    "special.softmax": (
        lambda _, y: torch.special.softmax(y @ y.mT, -1) @ y,
        lambda _, y: torch.softmax(y @ y.mT, -1) @ y,
    ),
    "native_channel_shuffle": (
        lambda _, y: torch.native_channel_shuffle(y[..., None], 2)[..., 0],
        lambda _, y: y.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2),
    ),
}


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize("name", SAME)
def test_the_same_written_out(name: str, rule: str) -> None:
    found, expected = (
        relevances(
            EXPLAINERS[rule](around(operation, norm=nn.LayerNorm(4), wide=nn.Linear(4, 8))),
            "before",
            "after",
        )
        for operation in SAME[name]
    )
    assert found[0].any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


MOVED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "index": lambda _, y: y[:, [0, 3, 3]],
    "index_select": lambda _, y: y.index_select(2, torch.tensor([1, 1, 0])),
    "gather": lambda _, y: y.gather(1, y.argsort(1)),
    "take_along_dim": lambda _, y: torch.take_along_dim(y, y.argsort(2), 2),
    "masked_fill": lambda _, y: y.masked_fill(y > 0.1, -2.0),
    "where": lambda _, y: torch.where(y > 0, y, y.flip(1)),
    "where a number": lambda _, y: torch.where(y > 0, 0.5, y),
    "tril": lambda _, y: y.tril(),
    "triu": lambda _, y: y.triu(-1),
    "rot90": lambda _, y: y.rot90(1, (1, 2)),
    "diagonal": lambda _, y: y.diagonal(1, 1, 2),
    "unfold": lambda _, y: y.unfold(1, 3, 2),
    "im2col": lambda _, y: functional.unfold(y[:, None], (2, 3), padding=1),
    "repeat_interleave": lambda _, y: y.repeat_interleave(2, 1),
    "broadcast_to": lambda _, y: torch.broadcast_to(y[:, None], (3, 2, 6, 4)),
}


@pytest.mark.parametrize("name", MOVED)
def test_relevance_moves_with_the_entries(name: str) -> None:
    operation = MOVED[name]
    model = around(operation)
    before, after = relevances(rk.RAP(model), "before", "after")
    values: list[Tensor] = []
    model.get_submodule("before").register_forward_hook(lambda _m, _a, out: values.append(out))
    with torch.no_grad():
        model(tokens())
    jacobian = torch.autograd.functional.jacobian(lambda y: operation(None, y), values[0])
    entries = values[0].numel()
    expected = after.flatten() @ jacobian.reshape(-1, entries)  # type: ignore[union-attr]
    assert before.any()
    torch.testing.assert_close(before.flatten(), expected, rtol=0, atol=1e-12)


WON: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "amax": lambda _, y: y.amax((1, 2), keepdim=True),
    "amin": lambda _, y: y.amin(-1),
    "max": lambda _, y: y.max(1)[0],
    "min": lambda _, y: y.min(2, keepdim=True)[0],
    "maximum": lambda _, y: torch.maximum(y, y.flip(1)),
    "minimum": lambda _, y: torch.minimum(y, y.flip(1)[:, :1]),
}


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize("name", WON)
def test_the_winner_takes_all(name: str, rule: str) -> None:
    operation = WON[name]
    model = around(operation)
    before, after = relevances(EXPLAINERS[rule](model), "before", "after")
    x: Any = model.get_submodule("values")(tokens()).detach().requires_grad_()
    # torch's own derivative: 1 for the winner.
    (expected,) = torch.autograd.grad(operation(None, x), x, after)
    torch.testing.assert_close(before, expected, rtol=0, atol=1e-14)


def test_equal_ones_share() -> None:
    model = around(lambda _, y: torch.maximum(y, y.clone()))
    before, after = relevances(rk.RAP(model), "before", "after")
    torch.testing.assert_close(before, after, rtol=0, atol=1e-14)


def test_a_constant_that_competes_is_a_threshold() -> None:
    model = around(lambda m, y: torch.maximum(y, m.norm.weight), norm=nn.LayerNorm(4))
    before, after = relevances(rk.RAP(model), "before", "after")
    assert torch.equal(before, after)


@pytest.mark.parametrize("rule", EXPLAINERS)
def test_a_stack_before_the_batch(rule: str) -> None:
    model = around(lambda m, y: torch.stack([y, m.other(y)]).mean(0), other=nn.Linear(4, 4))
    other = around(lambda m, y: torch.stack([y, m.other(y)], 1).mean(1), other=nn.Linear(4, 4))
    found = relevances(EXPLAINERS[rule](model), "before", "after", "other")
    expected = relevances(EXPLAINERS[rule](other), "before", "after", "other")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize(
    "resize",
    [
        lambda y: functional.interpolate(y[:, None], (4, 9), mode="bicubic"),
        lambda y: functional.interpolate(y[:, None], (7, 3), mode="bicubic", align_corners=True),
        lambda y: functional.interpolate(y[:, None], scale_factor=1.7, mode="bicubic"),
        lambda y: functional.interpolate(y[:, None], (9, 8), mode="nearest-exact"),
        lambda y: functional.interpolate(y[:, None], (3, 3), mode="bilinear", antialias=True),
        lambda y: functional.grid_sample(
            y[:, None], torch.tanh(y[..., :2])[:, None], align_corners=False
        ),
    ],
)
def test_weighted_sums_share_by_their_messages(
    resize: Callable[[Tensor], Tensor], rule: str
) -> None:
    model = around(lambda _, y: resize(y))
    before, after = relevances(EXPLAINERS[rule](model), "before", "after")
    values = model.get_submodule("values")(tokens()).detach()
    for n in range(3):
        if "grid_sample" in resize.__code__.co_names:
            continue
        entries = torch.eye(24, dtype=torch.float64).view(24, 6, 4)
        matrix = resize(entries).flatten(1).T
        messages = matrix * values[n].flatten()
        expected = after[n].flatten() @ shares(messages, rule)
        torch.testing.assert_close(before[n].flatten(), expected, rtol=0, atol=1e-12)


def test_attention_whose_heads_talk() -> None:
    """A layer mixes the weights of the heads: they are constants still, of both signs now."""

    def run(m: Any, y: Tensor) -> Tensor:
        weights = torch.softmax(torch.stack([y @ y.mT, -y @ y.mT], 1), -1)
        weights = m.talk(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        m.__dict__["weights"] = weights
        return weights @ y[:, None]

    model: Any = around(run, talk=nn.Linear(2, 2))
    before, after = relevances(rk.RAP(model), "before", "after")
    model(tokens())
    values = model.values(tokens())
    expected = torch.zeros_like(before)
    for n in range(3):
        for head in range(2):
            for channel in range(4):
                messages = model.weights[n, head] * values[n, :, channel]
                expected[n, :, channel] += after[n, head, :, channel] @ shares(messages, "absolute")
    torch.testing.assert_close(before, expected, rtol=0, atol=1e-12)


def test_masks_and_indices_are_constants() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        kept = (m.b(x) > 0).to(y.dtype) * y
        return m.fc(kept + nn.functional.one_hot(y.argmax(1), 4).to(y.dtype))

    layers = {name: nn.Linear(4, 4) for name in ("a", "b", "fc")}
    model = seeded(lambda: Function(run, **layers))
    x = drawn(3, 4, dtype=torch.float64)
    _, layers_found, report = rk.RAP(model).attribute(x, 1, layers=["a"], return_report=True)
    assert report.worst().error.max() <= 1e-12
    assert layers_found["a"].any()
    assert "b" not in {row.module for row in report.rows}
