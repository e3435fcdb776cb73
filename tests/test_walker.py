"""The walk: relevance conserved, nothing mixed, nothing overwritten, nothing kept."""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import rapkernels as rk
from rapkernels.errors import NonPositiveTargetWarning
from rapkernels.relevance import Relevance
from rapkernels.rules import unregister_rule
from rapkernels.rules.base import Context
from tests.networks import NETWORKS, Function, conv, drawn, images, network, norm, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_step_conserves(name: str, variant: Any, dtype: torch.dtype, backend: Any) -> None:
    model = network(name, dtype)
    x = images(dtype=dtype)
    relevance, report = rk.RAP(model, variant, backend=backend).attribute(x, return_report=True)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    worst = report.worst()
    assert float(worst.error.max()) <= tolerance, worst
    assert relevance.shape == x.shape
    assert bool(torch.isfinite(relevance).all())
    with torch.no_grad():
        expected = model(x).amax(1).cpu()
    torch.testing.assert_close(report.score, expected)
    absorbed = sum(row.absorbed for row in report.rows)
    largest = max(float(row.magnitude.max()) for row in report.rows)
    lost = (report.total + absorbed - report.score).abs().max()
    assert float(lost) <= len(report.rows) * tolerance * largest


@pytest.mark.parametrize("name", NETWORKS)
def test_author_variant_runs_everywhere(name: str, backend: Any) -> None:
    model = network(name)
    relevance = rk.attribute(model, images(), variant="author", backend=backend)
    assert bool(torch.isfinite(relevance).all())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "volumes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_stay_finite(name: str, dtype: torch.dtype, backend: Any) -> None:
    """For "volumes" torch itself has no average pool in half precision."""
    model = network(name, dtype)
    relevance, report = rk.RAP(model, backend=backend).attribute(
        images(dtype=dtype), return_report=True
    )
    assert relevance.dtype == dtype
    assert bool(torch.isfinite(relevance).all())
    assert not any(int(row.non_finite.sum()) for row in report.rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_do_not_mix(name: str, backend: Any) -> None:
    model = network(name)
    x = images(3)
    explainer = rk.RAP(model, backend=backend)
    together = explainer.attribute(x)
    apart = torch.cat([explainer.attribute(sample[None]) for sample in x])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("variant", ["default", "author"])
def test_native_equals_reference(name: str, variant: Any, native: Any) -> None:
    assert native is rk.ops
    model = network(name)
    maps = [
        rk.attribute(model, images(), variant=variant, backend=backend)
        for backend in ("native", "reference")
    ]
    scale = float(maps[1].abs().max())
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-9 * scale)


def _one_pixel() -> Tensor:
    x = torch.zeros(2, 3, 6, 6)
    x[:, 1, 2, 3] = 1
    return x


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 3, 6, 6),
        torch.full((2, 3, 6, 6), 0.7),
        _one_pixel(),
        images(dtype=torch.float32) * 1e-25,
        images(dtype=torch.float32) * 1e15,
        -images(dtype=torch.float32).abs(),
    ],
    ids=["zeros", "constant", "one pixel", "tiny", "huge", "negative"],
)
@pytest.mark.parametrize("name", ["residual", "pools", "conv head", "pads"])
def test_unusual_inputs_stay_finite(name: str, x: Tensor, backend: Any) -> None:
    model = network(name, torch.float32)
    for target in range(5):
        relevance, report = rk.RAP(model, backend=backend).attribute(x, target, return_report=True)
        assert bool(torch.isfinite(relevance).all())
        assert float(report.worst().error.max()) <= 1e-5


def test_all_is_absorbed_where_nothing_answers(backend: Any) -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    with torch.no_grad():
        model[1].bias.fill_(-100.0)
        model[3].bias.fill_(1.0)
    x = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    relevance, report = rk.RAP(model, backend=backend).attribute(x, 1, return_report=True)
    assert not relevance.any()
    assert torch.equal(report.rows[0].absorbed, report.score)


# ---- rules of the user --------------------------------------------------------------------------


class Half(rk.Rule):
    """Keeps half of the relevance and absorbs the other."""

    name = "half"

    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        ctx.save(args[0].shape)
        return super().forward(ctx, *args, **kwargs)

    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        values = ctx.materialise(relevance)
        assert values.shape == ctx.saved[0]
        lost = values.flatten(1).sum(1, dtype=torch.float64) / 2
        ctx.absorb(lost)
        return Relevance(values / 2)


class Sine(nn.Module):
    """An operation that has no rule of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def test_registered_rules_are_used() -> None:
    model = seeded(lambda: nn.Sequential(conv(3), Sine(), conv(), nn.Flatten()))
    x = images()
    explainer = rk.RAP(model, backend="reference")
    with pytest.raises(rk.errors.UnsupportedOperationError):
        explainer.attribute(x)
    try:
        rk.register_rule("aten.sin.default", "identity")
        passed, report = explainer.attribute(x, 1, return_report=True)
        assert [row.rule for row in report.rows][1:3] == ["rap_conv", "identity"]
        rk.register_rule("aten.sin.default", Half)
        halved, report = explainer.attribute(x, 1, return_report=True)
        torch.testing.assert_close(halved, passed / 2)
        assert [row.rule for row in report.rows][2] == "half"
        assert float(report.worst().error.max()) < 1e-12
    finally:
        unregister_rule("aten.sin.default")
    with pytest.raises(rk.errors.UnsupportedOperationError):
        explainer.attribute(x)


def test_a_built_in_rule_can_be_replaced_and_brought_back() -> None:
    model = seeded(lambda: nn.Sequential(conv(3), norm(), nn.ReLU(), conv(), nn.Flatten()))
    x = images()
    explainer = rk.RAP(model, backend="reference")
    built_in = explainer.attribute(x, 1)
    try:
        rk.register_rule("aten.batch_norm.default", "identity")
        rk.register_rule("aten.relu.default", Half)
        rules = [row.rule for row in explainer.plan(x).rows]
        assert rules == ["z_box", "identity", "half", "rap_conv", "structure"]
        assert not torch.allclose(explainer.attribute(x, 1), built_in)
    finally:
        unregister_rule("aten.batch_norm.default")
        unregister_rule("aten.relu.default")
    assert torch.equal(explainer.attribute(x, 1), built_in)


# ---- memory -------------------------------------------------------------------------------------


class _Tensors(TorchDispatchMode):
    """Remembers, weakly, every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.seen.append(weakref.ref(item))
        return result

    def at_rest(self, count: int) -> bool:
        """Whether at most ``count`` are alive, once the threads of autograd let go of theirs."""
        for _ in range(200):
            if self.alive() <= count:
                return True
            time.sleep(0.01)
        return False

    def alive(self) -> int:
        tensors = (reference() for reference in self.seen)
        return len({id(tensor) for tensor in tensors if tensor is not None})


@pytest.mark.parametrize("name", ["residual", "concatenated", "sliced", "pads"])
def test_nothing_survives_the_call(name: str, backend: Any) -> None:
    model = network(name)
    explainer = rk.RAP(model, backend=backend)
    x = images()
    explainer.attribute(x)
    gc.collect()
    gc.disable()
    try:
        with _Tensors() as tensors:
            relevance = explainer.attribute(x)
        assert len(tensors.seen) > 20
        assert tensors.at_rest(1), "no reference cycle may keep tensors until the next collection"
        del relevance
        assert tensors.at_rest(0)
    finally:
        gc.enable()


def test_nothing_survives_an_exception(backend: Any) -> None:
    class Breaks(rk.Rule):
        def backward(self, *_: Any) -> Relevance:
            raise ZeroDivisionError("on purpose")

    model = seeded(lambda: nn.Sequential(conv(3), Sine(), conv(), nn.Flatten()))
    rk.register_rule("aten.sin.default", Breaks)
    try:
        explainer = rk.RAP(model, backend=backend)
        tensors = _Tensors()
        x = images()
        explainer.plan(x)
        with pytest.raises(ZeroDivisionError) as caught, tensors:
            explainer.attribute(x)
        del caught
        gc.collect()
        assert tensors.seen
        assert tensors.at_rest(0)
    finally:
        unregister_rule("aten.sin.default")


def test_activations_are_freed_on_the_way() -> None:
    """Half way back, what the layers above saved is gone."""
    model = seeded(
        lambda: nn.Sequential(conv(3), Sine(), *[conv() for _ in range(6)], nn.Flatten())
    )
    alive: list[int] = []
    tensors = _Tensors()

    class Counts(rk.Rule):
        def backward(self, _: Context, relevance: Relevance) -> Relevance:
            alive.append(tensors.alive())
            return relevance

    rk.register_rule("aten.sin.default", Counts)
    try:
        x = images()
        explainer = rk.RAP(model, backend="reference")
        explainer.plan(x)
        with tensors:
            explainer.attribute(x)
    finally:
        unregister_rule("aten.sin.default")
    # The saved input of the first layer, parameters without gradient, the state and its sums.
    assert alive[0] < 40


def test_the_first_relu_overwrites_nothing_it_does_not_own() -> None:
    """ReLU on the input itself, on a value read twice, and on a view of the input."""
    functions = [
        lambda m, x: m.fc(torch.relu(x).flatten(1)),
        lambda m, x: m.fc((torch.relu(y := x * 2) + y).flatten(1)),
        lambda m, x: m.fc(torch.relu(x.flatten(1))),
        lambda m, x: m.fc(torch.relu(m.drop(x)).flatten(1)),
        lambda m, x: m.fc(torch.relu(m.a(x)).flatten(1)),
        lambda m, x: m.fc(torch.relu(y := m.a(x)).flatten(1)) + y.flatten(1)[:, :3],
    ]
    for function in functions:
        model = seeded(
            lambda function=function: Function(
                function, fc=nn.Linear(108, 3), drop=nn.Dropout(), a=conv(3, 3, bias=False)
            )
        )
        x = images()
        before = x.clone()
        _, report = rk.RAP(model, backend="reference").attribute(x, return_report=True)
        assert torch.equal(x, before)
        with torch.no_grad():
            torch.testing.assert_close(report.score, model(x).amax(1).cpu())
        assert float(report.worst().error.max()) < 1e-12


def test_warns_of_non_positive_logits_by_default() -> None:
    model = seeded(NETWORKS["linear alone"])
    with torch.no_grad():
        model[1].bias.fill_(-1000.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rk.attribute(model, images(), backend="reference")
    assert [warning.category for warning in caught] == [NonPositiveTargetWarning]


def test_bounds_where_tokens_come_before_samples() -> None:
    def tokens_first(m: Any, x: Tensor) -> Tensor:
        return m.fc(functional.relu(m.a(x.transpose(0, 1))).transpose(0, 1).flatten(1))  # type: ignore[no-any-return]

    def samples_first(m: Any, x: Tensor) -> Tensor:
        return m.fc(functional.relu(m.a(x)).flatten(1))  # type: ignore[no-any-return]

    x = drawn(4, 4, 3, dtype=torch.float64)
    low, high = x - drawn(4, 4, 3, seed=1, dtype=torch.float64).abs(), x + 1
    maps = [
        rk.RAP(
            seeded(lambda run=run: Function(run, a=nn.Linear(3, 6), fc=nn.Linear(24, 5))),
            bounds=(low, high),
        ).attribute(x, 2)
        for run in (tokens_first, samples_first)
    ]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-12)


def test_a_head_that_another_head_reads_is_an_inner_layer() -> None:
    def two_heads(m: Any, x: Tensor) -> Tensor:
        first = m.first(functional.relu(m.a(x)).flatten(1))
        return torch.cat([first, m.second(first)], 1)

    model = seeded(
        lambda: Function(
            two_heads, a=nn.Conv2d(3, 4, 1), first=nn.Linear(144, 5), second=nn.Linear(5, 3)
        )
    )
    roles = {row.module: row.role for row in rk.RAP(model).plan(images()).rows}
    assert (roles["first"], roles["second"]) == ("", "output")
    for target in (1, 6):
        _, report = rk.RAP(model).attribute(images(), target, return_report=True)
        assert report.worst().error.max() <= 1e-12
