"""Perturbation, insertion and deletion curves, AOPC, AUC."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rapkernels.errors import (
    ArgumentError,
    ArgumentTypeError,
    NonFiniteOutputError,
    TrainingModeError,
)
from rapkernels.metrics import aopc, auc, deletion, insertion, perturbation
from tests.metric_maps import CHECKED, tensor

pytestmark = pytest.mark.usefixtures("one_thread")

CURVES: list[Callable[..., Tensor]] = [perturbation, deletion, insertion]


class Weighted(nn.Module):
    """Logits (sum of weight * x, 0); notes how it is called."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.batches.append(len(x))
        score = (x * self.weight).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


# Two channels of 2 x 2; the contributions of the four pixels are 8, 1, -2, 4.
X = tensor([1, 1], [1, 2])[:, None].repeat(1, 2, 1, 1)
WEIGHT = torch.stack([tensor([6, 1], [-3, 1])[0], tensor([2, 0], [1, 1])[0]])
MAPS = tensor([8, 1], [-2, 4])


def weighted() -> Weighted:
    return Weighted(WEIGHT.clone()).eval()


def curve(values: Tensor) -> list[float]:
    assert values.dtype == torch.float64
    assert len(values) == 1
    return [float(value) for value in values[0]]


def test_most_relevant_first() -> None:
    found = perturbation(weighted(), X, MAPS, "morf", 1, 4, score="logit")
    assert curve(found) == [11, 3, -1, -2, 0]


def test_least_relevant_first() -> None:
    found = perturbation(weighted(), X, MAPS, "lerf", 1, 3, score="logit")
    assert curve(found) == [11, 13, 12, 8]


def test_several_pixels_in_a_step() -> None:
    found = perturbation(weighted(), X, MAPS, pixels=2, steps=2, score="logit")
    assert curve(found) == [11, -1, 0]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("probability", [1 / (1 + math.exp(-logit)) for logit in (11, 3, -1, -2, 0)]),
        # Of two equal logits the first class is the prediction.
        ("accuracy", [1, 1, 0, 0, 1]),
    ],
)
def test_scores(score: Any, expected: list[float]) -> None:
    found = perturbation(weighted(), X, MAPS, "morf", 1, 4, score=score)
    assert curve(found) == pytest.approx(expected, rel=1e-14)


def test_the_default_score_is_the_probability() -> None:
    for metric, options in ((perturbation, {"pixels": 1}), (deletion, {}), (insertion, {})):
        found = metric(weighted(), X, MAPS, steps=4, **options)
        again = metric(weighted(), X, MAPS, steps=4, score="probability", **options)
        assert torch.equal(found, again)


def test_a_value_for_each_channel() -> None:
    value = torch.tensor([1.0, -1.0])[:, None, None]
    found = perturbation(weighted(), X, MAPS, "morf", 1, 1, value=value, score="logit")
    assert curve(found) == [11, 3 + 6 - 2]


def test_equal_relevance_goes_row_by_row() -> None:
    for order in ("morf", "lerf"):
        found = perturbation(weighted(), X, 0 * MAPS + 1, order, 1, 4, score="logit")
        assert curve(found) == [11, 3, 2, 4, 0]


def test_deletion_and_insertion_by_hand() -> None:
    assert curve(deletion(weighted(), X, MAPS, steps=4, score="logit")) == [11, 3, -1, -2, 0]
    assert curve(insertion(weighted(), X, MAPS, steps=4, score="logit")) == [0, 8, 12, 13, 11]
    # A third of four pixels is 1.33, two thirds are 2.67.
    assert curve(deletion(weighted(), X, MAPS, steps=3, score="logit")) == [11, 3, -2, 0]


def test_a_baseline_image() -> None:
    baseline = 2 * X
    found = deletion(weighted(), X, MAPS, baseline, 4, score="logit")
    assert curve(found) == [11, 19, 23, 24, 22]
    found = insertion(weighted(), X, MAPS, baseline, 4, score="logit")
    assert curve(found) == [22, 14, 10, 9, 11]


@pytest.mark.parametrize("target", [1, [1], torch.tensor([1])])
@pytest.mark.parametrize("metric", CURVES)
def test_the_target(metric: Callable[..., Tensor], target: Any) -> None:
    options = {"pixels": 2} if metric is perturbation else {}
    found = metric(weighted(), X, MAPS, steps=2, target=target, score="logit", **options)
    assert curve(found) == [0, 0, 0]


def test_the_predicted_class_is_that_of_x() -> None:
    # The second class wins; the baseline's prediction is the first.
    found = insertion(weighted(), -X, MAPS, steps=4, score="accuracy")
    assert curve(found) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("metric", CURVES)
def test_batches_of_any_size(metric: Callable[..., Tensor]) -> None:
    generator = torch.Generator(X.device).manual_seed(1)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=generator, device=X.device)
    maps = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator, device=X.device)
    weight = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator, device=X.device)
    options = {"pixels": 4} if metric is perturbation else {}
    expected = metric(Weighted(weight).eval(), x, maps, steps=5, **options)
    assert expected.shape == (3, 6)
    for size in (1, 4, 7):
        model = Weighted(weight).eval()
        found = metric(model, x, maps, steps=5, batch_size=size, **options)
        # Sums over the channels may run in another order in batches of another size.
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert max(model.batches) == size
    for sample in range(3):
        part = slice(sample, sample + 1)
        found = metric(Weighted(weight).eval(), x[part], maps[part], steps=5, **options)
        torch.testing.assert_close(found, expected[part], rtol=1e-12, atol=1e-14)


def test_x_is_left_alone() -> None:
    x = X.clone().requires_grad_()
    found = deletion(weighted(), x, MAPS, steps=4)
    assert torch.equal(x, X)
    assert not found.requires_grad


@CHECKED
@given(st.lists(st.integers(-4, 4), min_size=4, max_size=4), st.integers(-20, 20))
def test_scale_does_not_matter_and_the_ends_are_fixed(relevance: list[int], power: int) -> None:
    maps = torch.tensor(relevance, dtype=torch.float64).view(1, 2, 2)
    model = weighted()
    for metric in (deletion, insertion):
        found = metric(model, X, maps, steps=4)
        assert torch.equal(metric(model, X, maps * 2.0**power, steps=4), found)
        assert bool(((found >= 0) & (found <= 1)).all())
    assert torch.equal(deletion(model, X, maps, steps=4)[:, 0], found[:, -1])
    assert torch.equal(deletion(model, X, maps, steps=4)[:, -1], found[:, 0])
    forth = perturbation(model, X, -maps, "morf", 1, 4)
    assert torch.equal(perturbation(model, X, maps, "lerf", 1, 4), forth)


def test_aopc_by_hand() -> None:
    values = torch.tensor([[11.0, 3, -1, -2, 0], [5, 5, 5, 5, 5]])
    assert aopc(values).tolist() == [pytest.approx((0 + 8 + 12 + 13 + 11) / 5), 0]


def test_auc_by_hand() -> None:
    values = torch.tensor([[1.0, 0.5, 0.25], [0.3, 0.3, 0.3]], dtype=torch.float64)
    assert auc(values).tolist() == pytest.approx([(0.75 + 0.375) / 2, 0.3])


@pytest.mark.parametrize("metric", [aopc, auc])
@pytest.mark.parametrize(
    ("curves", "error", "message"),
    [
        ([[1.0, 2.0]], ArgumentTypeError, "curves must be a floating-point tensor, got list"),
        (torch.ones(1, 2, dtype=torch.int64), ArgumentTypeError, "got torch.int64"),
        (torch.ones(3), ArgumentError, r"curves must have shape \(N, points\) .* got \[3\]"),
        (torch.ones(3, 1), ArgumentError, r"at least 2 points, got \[3, 1\]"),
    ],
)
def test_curves_that_are_none(
    metric: Callable[..., Tensor], curves: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metric(curves)


@pytest.mark.parametrize("metric", CURVES)
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": torch.relu}, ArgumentTypeError, r"model must be a torch.nn.Module"),
        ({"x": X[0]}, ArgumentError, r"x must have shape \(N, C, H, W\) .* got shape \[2, 2, 2\]"),
        ({"x": X[:0]}, ArgumentError, r"with N at least 1, got shape \[0, 2, 2, 2\]"),
        ({"x": X.float()}, ArgumentTypeError, "x must have the dtype of the model's parameters"),
        ({"x": X / 0}, ArgumentError, "x must be finite"),
        ({"maps": MAPS[:, :1]}, ArgumentError, r"maps must have .* \[1, 2, 2\], got shape \[1, 1"),
        ({"maps": X}, ArgumentError, r"maps must have shape \(N, H, W\) .*: sum the channels"),
        ({"steps": 0}, ArgumentError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, ArgumentTypeError, "steps must be an int, got float"),
        ({"steps": 5}, ArgumentError, "steps must be at most the number of pixels, 4, got .*5"),
        ({"target": 2}, ArgumentError, "target must be at least 0 and below the number of outputs"),
        ({"target": [0, 1]}, ArgumentError, "target must have one entry per sample, 1, got 2"),
        ({"score": "loss"}, ArgumentError, 'score must be one of "probability", "logit", "acc'),
        ({"batch_size": 0}, ArgumentError, "batch_size must be at least 1, got 0"),
    ],
)
def test_arguments_that_are_none(
    metric: Callable[..., Tensor], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"model": weighted(), "x": X, "maps": MAPS, "steps": 2}
    if metric is perturbation:
        arguments["pixels"] = 1
        message = message.replace("steps must be at most", r"pixels \* steps must be at most")
    with pytest.raises(error, match=message):
        metric(**{**arguments, **changes})


@pytest.mark.parametrize("name", ["value", "baseline"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("blur", ArgumentTypeError, "must be a number or a tensor, got str"),
        (torch.nan, ArgumentError, "must be finite"),
        (torch.zeros(3, 1, 1), ArgumentError, r"must broadcast to x of shape \[1, 2, 2, 2\], got"),
    ],
)
def test_values_that_are_none(name: str, value: Any, error: type[Exception], message: str) -> None:
    metric: Callable[..., Tensor] = perturbation if name == "value" else insertion
    options = {"pixels": 1} if name == "value" else {}
    with pytest.raises(error, match=f"{name} {message}"):
        metric(weighted(), X, MAPS, steps=2, **options, **{name: value})


@pytest.mark.parametrize(
    ("order", "message"),
    [("random", 'order must be one of "morf", "lerf", got .random.'), (None, "got None")],
)
def test_an_unknown_order(order: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        perturbation(weighted(), X, MAPS, order, 1, 2)


@pytest.mark.parametrize("pixels", [0, -1])
def test_too_few_pixels(pixels: int) -> None:
    with pytest.raises(ArgumentError, match=f"pixels must be at least 1, got {pixels}"):
        perturbation(weighted(), X, MAPS, "morf", pixels, 2)


def test_a_model_in_train_mode() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Flatten()).double()
    with pytest.raises(TrainingModeError, match="model must be in eval mode"):
        deletion(model, X, MAPS, steps=2)


def test_a_model_without_logits() -> None:
    with pytest.raises(
        ArgumentError, match=r"model must return logits .* got shape \[1, 2, 2, 2\]"
    ):
        deletion(nn.Identity(), X, MAPS, steps=2)


def test_logits_that_are_not_finite() -> None:
    with pytest.raises(NonFiniteOutputError, match="NaN or infinite logits"):
        deletion(Weighted(WEIGHT / 0).eval(), X, MAPS, steps=2)
