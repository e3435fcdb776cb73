"""AttnLRP: relevance to the weights of attention, against its equations written out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError, UnsupportedOperationError
from tests.networks import Function, drawn, images, network, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]

# float64, sums of 24 terms over products that do not cancel below 1e-3.
TOLERANCE = 1e-11
EXPLAINERS: dict[str, Callable[..., Any]] = {
    "ratio": lambda model, **options: rk.LRP(model, "EpsilonPlus", attention="attnlrp", **options),
    "absolute": lambda model, **options: rk.RAP(model, attention="attnlrp", **options),
}
Attend = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def tokens(batch: int = 2) -> Tensor:
    return drawn(batch, 5, 8, seed=4, dtype=torch.float64)


def attending(attend: Attend, heads: int = 2, groups: int = 2) -> nn.Module:
    """Attention of two heads of 4 channels; ``q``, ``k`` and ``v`` are their inputs."""

    def run(m: Any, x: Tensor) -> Tensor:
        q = m.q(m.to_q(x).unflatten(2, (heads, 4)).transpose(1, 2))
        k = m.k(m.to_k(x).unflatten(2, (groups, 4)).transpose(1, 2))
        v = m.v(m.to_v(x).unflatten(2, (groups, 4)).transpose(1, 2))
        return m.fc(m.out(attend(m, q, k, v)).transpose(1, 2).flatten(1))  # type: ignore[no-any-return]

    def build() -> nn.Module:
        layers: dict[str, nn.Module] = {"to_q": nn.Linear(8, 4 * heads)}
        layers |= {name: nn.Linear(8, 4 * groups) for name in ("to_k", "to_v")}
        layers |= {name: nn.Dropout() for name in ("q", "k", "v", "scores", "weights", "out")}
        return Function(run, **layers, fc=nn.Linear(20 * heads, 5))

    return seeded(build)


def by_hand(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = m.weights(torch.softmax(m.scores(q @ k.transpose(-2, -1) / 2), -1))
    return weights @ v  # type: ignore[no-any-return]


def shares(messages: Tensor, rule: str) -> Tensor:
    """The share of each message (dimension 0) in their sum, halved: one half for each factor."""
    weights = messages.abs() if rule == "absolute" else messages
    whole = weights.sum(0)
    stabilizer = 0.0 if rule == "absolute" else 1e-6
    return weights / (whole + torch.where(whole < 0, -stabilizer, stabilizer)) / 2


@pytest.mark.parametrize("rule", EXPLAINERS)
def test_messages(rule: str, backend: Any) -> None:
    """Products by their terms one by one, softmax by its Jacobian."""
    seen: dict[str, Tensor] = {}
    model: Any = attending(by_hand)
    names = ["q", "k", "v", "scores", "weights", "out"]
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, value, name=name: seen.update({name: value.detach()})
        )
        for name in names
    ]
    model(tokens())
    for handle in handles:
        handle.remove()
    _, found = EXPLAINERS[rule](model, backend=backend).attribute(tokens(), 1, layers=names)
    expected = {name: torch.zeros_like(value) for name, value in seen.items()}
    for n in range(2):
        for head in range(2):
            q, k, v, x, s, _ = (seen[name][n, head] for name in names)
            out, scores, weights = (found[name][n, head] for name in ("out", "scores", "weights"))
            for j in range(5):
                for p in range(4):
                    sent = shares(s[j] * v[:, p], rule) * out[j, p]
                    expected["weights"][n, head, j] += sent
                    expected["v"][n, head, :, p] += sent
                jacobian = torch.autograd.functional.jacobian(lambda z: torch.softmax(z, 0), x[j])
                expected["scores"][n, head, j] = x[j] * (jacobian.T @ (weights[j] / s[j]))
                for i in range(5):
                    sent = shares(q[j] * k[i], rule) * scores[j, i]
                    expected["q"][n, head, j] += sent
                    expected["k"][n, head, i] += sent
    for name in ("q", "k", "v", "scores", "weights"):
        scale = float(expected[name].abs().max())
        assert scale > 0
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=TOLERANCE * scale)


BIAS = drawn(2, 5, 5, seed=9, dtype=torch.float64)
LOWER = torch.ones_like(BIAS[0], dtype=torch.bool).tril()
# One row attends to nothing, which only the fused operation takes.
GAPS = (BIAS > -0.5).index_fill(1, torch.tensor([2], device=BIAS.device), False)


def hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float = 0.5,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    scores = q @ k.mT * scale
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, -1) @ v


def _repeated(x: Tensor) -> Tensor:
    return x.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2)


def _weighed(softmax: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("nhji,nhic->nhjc", softmax, v)


fused = functional.scaled_dot_product_attention
# The fused operation, and the same written out.
PAIRS: dict[str, tuple[Attend, Attend]] = {
    "plain": (lambda _, q, k, v: fused(q, k, v), lambda _, q, k, v: hand(q, k, v)),
    "einsum": (
        lambda _, q, k, v: fused(q, k, v),
        lambda _, q, k, v: _weighed(
            torch.softmax(torch.einsum("nhjc,nhic->nhji", q, k) / 2, -1), v
        ),
    ),
    "scale": (
        lambda _, q, k, v: fused(q, k, v, scale=0.2),
        lambda _, q, k, v: hand(q, k, v, 0.2),
    ),
    "bias": (
        lambda _, q, k, v: fused(q, k, v, attn_mask=BIAS),
        lambda _, q, k, v: hand(q, k, v, bias=BIAS),
    ),
    "mask": (
        lambda _, q, k, v: fused(q, k, v, attn_mask=LOWER.flip(0)),
        lambda _, q, k, v: hand(q, k, v, mask=LOWER.flip(0)),
    ),
    "causal": (
        lambda _, q, k, v: fused(q, k, v, is_causal=True),
        lambda _, q, k, v: hand(q, k, v, mask=LOWER),
    ),
    "one key for all": (
        lambda _, q, k, v: fused(q, k[:, :, :1] * 0 + 1, v[:, :, :1]),
        lambda _, q, k, v: hand(q, k[:, :, :1] * 0 + 1, v[:, :, :1]),
    ),
    "the same for all": (
        lambda _, q, *others: fused(q, q, q),  # noqa: ARG005
        lambda _, q, *others: hand(q, q, q),  # noqa: ARG005
    ),
}


@functools.cache
def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Models of PAIRS, exported once for all rules."""
    one, other = PAIRS[name]
    return attending(one), attending(other)


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize("name", PAIRS)
def test_fused_attention_is_attention_by_hand(name: str, rule: str) -> None:
    layers = ["q"] if name == "the same for all" else ["q", "k", "v"]
    maps, found = zip(
        *(EXPLAINERS[rule](model).attribute(tokens(), 1, layers=layers) for model in pair(name)),
        strict=True,
    )
    scale = float(maps[0].abs().max())
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=TOLERANCE * scale)
    for layer in layers:
        torch.testing.assert_close(found[0][layer], found[1][layer], rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("rule", EXPLAINERS)
def test_groups_of_queries(rule: str) -> None:
    pair: tuple[Attend, Attend] = (
        lambda _, q, k, v: fused(q, k, v, enable_gqa=True),
        lambda _, q, k, v: hand(q, _repeated(k), _repeated(v)),
    )
    maps = [
        EXPLAINERS[rule](attending(attend, heads=4)).attribute_targets(tokens(), [1, 2])
        for attend in pair
    ]
    atol = TOLERANCE * float(maps[0].abs().max())
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=atol)


def test_what_is_a_constant_takes_nothing() -> None:
    """Learned queries: keys take all that goes to the weights; learned weights: values take all."""
    learned = drawn(1, 2, 5, 4, seed=2, dtype=torch.float64)
    model = attending(
        lambda _, q, k, v: fused(learned.expand(q.shape[0], -1, -1, -1), k, v + q * 0)
    )
    _, found, report = EXPLAINERS["ratio"](model).attribute(
        tokens(), 1, layers=["k", "v", "out"], return_report=True
    )
    assert float(report.worst().error.max()) <= 1e-12
    assert found["k"].any()
    # A half less what the stabilizer 1e-6 takes of products of order 1.
    half = found["out"].flatten(1).sum(1) / 2
    torch.testing.assert_close(found["v"].flatten(1).sum(1), half, rtol=1e-4, atol=0)
    model = attending(lambda _, q, k, v: fused(*learned.expand(2, -1, -1, -1, -1), v + (q + k) * 0))
    _, found = EXPLAINERS["ratio"](model).attribute(tokens(), 1, layers=["v", "out"])
    whole = found["out"].flatten(1).sum(1)
    torch.testing.assert_close(found["v"].flatten(1).sum(1), whole, rtol=1e-4, atol=0)


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize("name", ["multiheaded", "windowed", "masked"])
def test_conservation_rows_and_targets(name: str, rule: str, backend: Any) -> None:
    """Each step conserves, what biases take counted; targets and rows do not meet."""
    masked: Attend = lambda _, q, k, v: fused(q, k, v, attn_mask=GAPS)  # noqa: E731
    model = attending(masked) if name == "masked" else network(name)
    x = tokens() if name == "masked" else images()
    made = EXPLAINERS[rule](model, backend=backend)
    _, report = made.attribute(x, 3, return_report=True)
    assert {row.rule for row in report.rows} >= {"attnlrp"}
    assert float(report.worst().error.max()) <= 1e-12
    together = made.attribute_targets(x, [1, 4, 3])
    scale = float(together.abs().max())
    for t, target in enumerate([1, 4, 3]):
        alone = made.attribute(x, target)
        torch.testing.assert_close(together[t], alone, rtol=0, atol=TOLERANCE * scale)
    for n in range(2):
        alone = made.attribute_targets(x[n : n + 1], [1, 4, 3])
        torch.testing.assert_close(together[:, n : n + 1], alone, rtol=0, atol=TOLERANCE * scale)
    assert not torch.equal(together[0], rk.RAP(model).attribute(x, 1))


@pytest.mark.parametrize("rule", EXPLAINERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["attended", "windowed"])
def test_narrow_types_stay_finite(name: str, dtype: torch.dtype, rule: str) -> None:
    made = EXPLAINERS[rule](network(name, dtype))
    for size in (1e-3, 1, 100):
        maps = made.attribute_targets((images() * size).to(dtype), [1, 3])
        assert maps.dtype == dtype
        assert bool(torch.isfinite(maps).all())
        assert bool(maps.any())


@pytest.mark.parametrize("name", ["plain", "causal"])
def test_fused_attention_in_float16_is_that_of_float64(name: str) -> None:
    """Its inside is computed in float32: what is left are roundings to 11 bits around it."""
    exact = EXPLAINERS["absolute"](pair(name)[0]).attribute(tokens(), 1)
    found = EXPLAINERS["absolute"](attending(PAIRS[name][0]).half()).attribute(tokens().half(), 1)
    cosine = functional.cosine_similarity(found.double().flatten(), exact.flatten(), 0)
    assert float(cosine) > 0.999


def test_equilibrium_takes_it() -> None:
    model = network("attended")
    found = [
        rk.AttributionEquilibrium(model, layer="last", attention=attention).attribute(images(), 1)
        for attention in ("constant", "attnlrp")
    ]
    assert not torch.allclose(*found)


@pytest.mark.parametrize("which", [0, 1], ids=["fused", "by hand"])
def test_equal_tokens_send_nothing_to_queries_and_keys(which: int, backend: Any) -> None:
    """Equilibrium would make a map of what rounding leaves there."""
    model = pair("bias")[which]
    made = rk.AttributionEquilibrium(model, layer="out", attention="attnlrp", backend=backend)
    x = tokens()
    x[1] = x[1, :1]
    relevance, found = made.attribute(x, 1, layers=["q", "k", "v"])
    for name in ("q", "k"):
        assert found[name][0].any()
        assert not found[name][1].any()
    assert found["v"][1].any()
    alone = made.attribute(x[1:], 1)
    torch.testing.assert_close(relevance[1:], alone, rtol=0, atol=TOLERANCE)


def test_linear_attention_has_a_rule() -> None:
    """Products without a softmax, which are refused where weights must be constants."""
    model = attending(lambda _, q, k, v: q @ (k.mT @ v))
    with pytest.raises(UnsupportedOperationError, match='attention="attnlrp" has a rule'):
        rk.LRP(model).attribute(tokens(), 1)
    _, report = EXPLAINERS["ratio"](model).attribute(tokens(), 1, return_report=True)
    assert float(report.worst().error.max()) <= 1e-12


ERRORS: dict[str, tuple[Attend, str]] = {
    "dropout": (
        lambda _, q, k, v: fused(q, k, v, dropout_p=0.1),
        "its dropout is active",
    ),
    "mask of the input": (
        lambda _, q, k, v: fused(q, k, v, attn_mask=q @ k.mT),
        "its mask depends on the input",
    ),
    "weight of the input": (
        lambda _, q, k, v: fused(q, k, functional.linear(v, v[0, 0, :4].square())),
        "its weight depends on the input",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_refused(name: str) -> None:
    attend, message = ERRORS[name]
    with pytest.raises(UnsupportedOperationError, match=message):
        EXPLAINERS["ratio"](attending(attend)).plan(tokens())


def test_errors() -> None:
    model = network("attended")
    with pytest.raises(ArgumentError, match='attention must be one of "constant", "attnlrp"'):
        rk.RAP(model, attention="exact")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="options of method"):
        rk.attribute(model, images(), method="sharing_ratio", attention="attnlrp")
    layers = (nn.Flatten(), nn.Linear(108, 5), nn.Softmax(1), nn.Linear(5, 5))
    model = seeded(lambda: nn.Sequential(*layers))
    with pytest.raises(UnsupportedOperationError, match="a softmax inside of a model with"):
        rk.LRP(model).plan(images())
