"""All methods under the caller's modes, threads, layouts and dtypes: maps do not change."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from tests.explainers import METHODS, STARTING_AT_LAYERS, WALKERS, explainer
from tests.networks import NETWORKS, drawn, images, network, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]
CONTEXTS: list[Callable[[], AbstractContextManager[Any]]] = [
    torch.inference_mode,
    torch.no_grad,
    torch.enable_grad,
    lambda: torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16),
]


class Vgg(nn.Module):
    """Convolutions, pools and linear layers in VGG's order."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (8, None, 16, None, 16):
            if width is None:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


MODELS: dict[str, Callable[[], nn.Module]] = {"vgg": Vgg, "residual": NETWORKS["residual"]}


def inputs(name: str, batch: int = 3) -> Tensor:
    size = 16 if name == "vgg" else 6
    return drawn(batch, 3, size, size, seed=2)


# ---- the caller's modes -------------------------------------------------------------------------


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_callers_mode_changes_nothing(method: str, context: Any, backend: Any) -> None:
    made = explainer(method, network("residual", torch.float32), backend=backend)
    with context():
        x = images(dtype=torch.float32)
        inside = made.attribute(x, 1)
        several = made.attribute_targets(x, [1, 0])
    assert torch.equal(inside, made.attribute(x.clone(), 1))
    assert torch.equal(several, made.attribute_targets(x.clone(), [1, 0]))
    for found in (inside, several):
        assert not found.is_inference()
        assert not found.requires_grad


@pytest.mark.parametrize("context", CONTEXTS)
def test_fields_patterns_and_given_relevance_in_the_callers_mode(
    context: Any, backend: Any
) -> None:
    model, given = network("residual"), drawn(2, 5).double()
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: rk.SharingRatio(model, backend=backend).receptive_field(x, "b", (1, 2)),
        lambda x: rk.activation_pattern_prediction(model, x),
        lambda x: rk.LRP(model, backend=backend).attribute(x, output_relevance=given),
        lambda x: rk.LRP(model, backend=backend).attribute(x, 1, output_relevance="ones"),
    ]
    for call in calls:
        with context():
            x = images()
            inside = call(x)
        assert torch.equal(inside, call(images()))
        assert not inside.is_inference()
        assert not call(images().requires_grad_()).requires_grad


@pytest.mark.parametrize("name", ["residual", "shared", "pools", "layers"])
@pytest.mark.parametrize("method", METHODS)
def test_parameters_and_inputs_of_inference_mode(method: str, name: str) -> None:
    """torch.export takes no such parameters, and autograd keeps none for the way back."""
    with torch.inference_mode():
        model, x = seeded(NETWORKS[name]), images()
    assert next(model.parameters()).is_inference()
    relevance = explainer(method, model, name).attribute(x, 1)
    expected = explainer(method, network(name), name).attribute(images(), 1)
    assert torch.equal(relevance, expected)
    assert all(parameter.is_inference() for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_an_input_that_requires_a_gradient_gets_none(method: str, backend: Any) -> None:
    model = seeded(NETWORKS["residual"])
    x = images().requires_grad_()
    relevance = explainer(method, model, backend=backend).attribute(x, 1)
    assert not relevance.requires_grad
    assert x.grad is None
    assert x.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


# ---- layouts, batches, copies, threads ----------------------------------------------------------


def layouts(x: Tensor) -> list[Tensor]:
    wide = torch.zeros(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)
    wide[..., ::2] = x
    return [
        x.contiguous(memory_format=torch.channels_last),
        wide[..., ::2],
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([x, x])[: x.shape[0]],
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_the_layout_of_the_input_does_not_matter(method: str, name: str, backend: Any) -> None:
    made, x = explainer(method, seeded(MODELS[name]), backend=backend), inputs(name).double()
    expected = made.attribute(x, 1)
    for given in layouts(x):
        found = made.attribute(given, 1)
        torch.testing.assert_close(found, expected)
        if found.shape == x.shape and "class_distribution" not in method:
            assert found.stride() == torch.empty_like(given).stride()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_rows_and_may_be_empty(method: str, name: str, backend: Any) -> None:
    made, x = explainer(method, seeded(MODELS[name]), backend=backend), inputs(name).double()
    together = made.attribute(x, [0, 3, 2])
    for n, target in enumerate([0, 3, 2]):
        alone = made.attribute(x[n : n + 1], target)
        scale = float(alone.abs().amax())
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-9, atol=1e-11 * scale)
    assert made.attribute(x[:0], 1).shape == (0, *together.shape[1:])
    assert made.attribute_targets(x[:0], [1, 0]).shape == (2, 0, *together.shape[1:])


def test_empty_fields_and_patterns() -> None:
    model, none = network("residual"), images()[:0]
    assert rk.SharingRatio(model).receptive_field(none, "b", (0, 0)).shape == (0, 6, 6)
    assert rk.activation_pattern_prediction(model, none).shape == (0, 5)
    given = torch.zeros(0, 5, dtype=torch.float64)
    assert rk.LRP(model).attribute(none, output_relevance=given).shape == none.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy])
def test_explainers_can_be_copied(method: str, copied: Any) -> None:
    made, x = explainer(method, seeded(Vgg)), inputs("vgg").double()
    again = copied(made)
    assert again.model is not made.model
    assert repr(again) == repr(made)
    assert torch.equal(again.attribute(x, 1), made.attribute(x, 1))


@pytest.mark.parametrize("method", METHODS)
def test_threads_share_an_explainer(method: str, backend: Any) -> None:
    made = explainer(method, seeded(Vgg), backend=backend)
    given = [inputs("vgg", 1 + i % 3).double() for i in range(8)]
    results: list[Tensor | None] = [None] * len(given)

    def work(start: int) -> None:
        for i in range(start, len(given), 4):
            results[i] = made.attribute(given[i], i % 3)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (x, result) in enumerate(zip(given, results, strict=True)):
        assert result is not None
        torch.testing.assert_close(result, made.attribute(x, i % 3))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_repeats_are_equal(method: str, name: str, backend: Any) -> None:
    made, x = explainer(method, seeded(MODELS[name], torch.float32), backend=backend), inputs(name)
    first, several = made.attribute(x), made.attribute_targets(x, [1, 0, 3])
    for _ in range(5):
        assert torch.equal(made.attribute(x), first)
        assert torch.equal(made.attribute_targets(x, [1, 0, 3]), several)


# ---- precision ----------------------------------------------------------------------------------

# Every layer's value and relevance is rounded once, to eps / 2; a few ten layers of these networks
# give some ten roundings. Contributions that cancel enlarge them: the rules that divide by signed
# sums (alpha-beta with beta, gamma, and epsilon 0 most: gradient times input has no stabilizer) are
# ill-conditioned, and lose up to a digit or two more.
ROUNDINGS = 8
ILL_CONDITIONED = {
    "EpsilonAlpha2Beta1": 8,
    "EpsilonAlpha2Beta1Flat": 4,
    "EpsilonGammaBox": 4,
    "GradientTimesInput": 64,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_low_precision_is_close_to_float64(
    method: str, name: str, dtype: torch.dtype, backend: Any
) -> None:
    """Of the same rounded parameters and input, in the norm of the sum of magnitudes."""
    model, x = seeded(MODELS[name], dtype), inputs(name).to(dtype)
    # Maps of class distributions jump where a share crosses tau: their base is what is compared.
    method = {
        "class_distribution": "rap",
        "class_distribution of sharing_ratio": "sharing_ratio",
    }.get(method, method)
    relevance = explainer(method, model, backend=backend).attribute(x, 1)
    exact = explainer(method, copy.deepcopy(model).double(), backend=backend).attribute(
        x.double(), 1
    )
    assert relevance.dtype == dtype
    assert bool(torch.isfinite(relevance).all())
    difference = (relevance.double() - exact).flatten(1).abs().sum(1)
    error = difference / exact.flatten(1).abs().sum(1)
    factor = ROUNDINGS * ILL_CONDITIONED.get(method, 1)
    assert float(error.max()) < factor * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_finite_in_low_precision(method: str, name: str, dtype: torch.dtype) -> None:
    on_cpu = torch.get_default_device().type == "cpu"
    if name == "volumes" and dtype != torch.float32 and on_cpu:
        pytest.skip("torch has no avg_pool3d of halves on the CPU")
    made = explainer(method, network(name, dtype), name)
    relevance = made.attribute(images(dtype=dtype), 1)
    assert relevance.dtype == dtype
    assert bool(torch.isfinite(relevance).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_patterns_in_low_precision(dtype: torch.dtype) -> None:
    model, x = seeded(Vgg, dtype), inputs("vgg").to(dtype)
    found = rk.activation_pattern_prediction(model, x)
    exact = rk.activation_pattern_prediction(copy.deepcopy(model).double(), x.double())
    assert found.dtype == dtype
    # As above; a neuron near 0 may change sides, which its small value hardly shows here.
    scale = float(exact.abs().amax())
    assert float((found.double() - exact).abs().amax()) < ROUNDINGS * torch.finfo(dtype).eps * scale


# ---- plans --------------------------------------------------------------------------------------

RULES = {
    "rap": ("z_box", "rap_conv", "rap", "first_absolute"),
    "equilibrium": ("z_box", "equilibrium", "-", "-"),
    "sharing_ratio": ("sharing_ratio", "sharing_ratio", "-", "-"),
    "EpsilonPlus": ("z_plus", "z_plus", "epsilon", "epsilon"),
    "EpsilonPlusFlat": ("flat", "z_plus", "epsilon", "epsilon"),
    "EpsilonAlpha2Beta1": ("alpha_beta", "alpha_beta", "epsilon", "epsilon"),
    "EpsilonAlpha2Beta1Flat": ("flat", "alpha_beta", "epsilon", "epsilon"),
    "EpsilonGammaBox": ("z_box", "gamma", "epsilon", "epsilon"),
    "GradientTimesInput": ("gradient_times_input",) * 4,
}


@pytest.mark.parametrize("method", RULES)
def test_plans_name_the_rules(method: str) -> None:
    plan = explainer(method, seeded(Vgg)).plan(inputs("vgg").double())
    rules = {row.module: row.rule for row in plan.rows}
    layers = ["features.0", "features.3", "classifier.1", "classifier.4"]
    assert tuple(rules[layer] for layer in layers) == RULES[method]
    behind = ["avgpool", *(path for path in rules if path.startswith("classifier"))]
    assert len(behind) == 6
    if method in STARTING_AT_LAYERS:
        assert {rules[path] for path in behind} == {"-"}
        assert rules["features.7"] == "identity"
    else:
        assert "-" not in rules.values()
    text = str(plan)
    assert all(rule in text for rule in RULES[method])
    assert len(text.splitlines()) == len(plan.rows) + 2


def test_every_method_is_planned() -> None:
    assert {method.split()[0] for method in WALKERS} == set(RULES)
