"""Cascading parameter randomisation."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError, TrainingModeError
from rapkernels.metrics import (
    cosine_similarity,
    randomisation,
    randomisation_layers,
    rank_correlation,
    to_map,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]

LAYERS = ["7", "3", "1", "0"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    norm: Any = model[1]
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return model.double().eval()


def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 2, 6, 5, dtype=torch.float64)


def gradient_times_input(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    model(x).gather(1, target[:, None]).sum().backward()
    assert x.grad is not None
    return (x * x.grad).detach()


def test_each_stage_randomises_one_layer_more() -> None:
    model, x = network(), images()
    targets = model(x).argmax(1)
    seen: list[dict[str, Tensor]] = []

    def explain(stage: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        assert torch.equal(target, targets)
        seen.append(copy.deepcopy(stage.state_dict()))
        return gradient_times_input(stage, x, target)

    stages = list(randomisation(model, explain, x))
    assert [stage.layer for stage in stages] == LAYERS
    original = model.state_dict()
    assert len(seen) == len(LAYERS) + 1
    for done, state in enumerate(seen):
        changed = {name for name in state if not torch.equal(state[name], original[name])}
        expected = {name for name in state if name.partition(".")[0] in LAYERS[:done]}
        assert changed == expected - {"1.num_batches_tracked"}
    # What a stage has randomised, later stages keep.
    for name in ("7.weight", "7.bias"):
        assert all(torch.equal(state[name], seen[1][name]) for state in seen[2:])


def test_the_similarities_are_those_of_the_maps() -> None:
    model, x = network(), images()
    kept: list[Tensor] = []

    def explain(stage: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        kept.append(gradient_times_input(stage, x, target))
        return kept[-1]

    for absolute in (False, True):
        kept.clear()
        stages = list(randomisation(model, explain, x, absolute=absolute))
        maps = [to_map(relevance) for relevance in kept]
        maps = [values.abs() if absolute else values for values in maps]
        for stage, values in zip(stages, maps[1:], strict=True):
            assert torch.equal(stage.spearman, rank_correlation(maps[0], values))
            assert torch.equal(stage.cosine, cosine_similarity(maps[0], values))


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model, x = network(), images()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    list(randomisation(model, gradient_times_input, x))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_seed_decides() -> None:
    model, x = network(), images()

    def run(seed: int) -> Tensor:
        stages = randomisation(model, gradient_times_input, x, seed=seed)
        return torch.stack([stage.cosine for stage in stages])

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_layers_alike_are_randomised_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(model, nn.Flatten()).double().eval()
    weights: list[Tensor] = []

    def explain(stage: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        weights.append(torch.stack([stage[0][0].weight, stage[0][1].weight]).detach())
        return gradient_times_input(stage, x, target)

    list(randomisation(model, explain, images()))
    assert not torch.isin(weights[-1][0], weights[-1][1]).any()


def test_maps_that_ignore_the_model_stay_as_they_are() -> None:
    def edges(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:  # noqa: ARG001
        return x.diff(dim=2, append=x[:, :, :1])

    for stage in randomisation(network(), edges, images()):
        torch.testing.assert_close(stage.spearman, torch.ones_like(stage.spearman))
        torch.testing.assert_close(stage.cosine, torch.ones_like(stage.cosine))


def test_our_explainers_see_each_stage() -> None:
    """The copy is changed in place; an explainer that kept weights would see the old ones."""
    x = images()
    explain = partial(rk.attribute, backend="reference")
    stages: list[tuple[nn.Module, Tensor]] = []

    def note(stage: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        relevance = explain(stage, x, target)
        fresh = explain(copy.deepcopy(stage), x, target)
        torch.testing.assert_close(relevance, fresh, rtol=0, atol=0)
        stages.append((stage, relevance))
        return relevance

    list(randomisation(network(), note, x))
    assert all(not torch.equal(a[1], b[1]) for a, b in pairwise(stages))


def test_a_target_for_each_sample() -> None:
    def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        assert target.tolist() == [2, 0, 1]
        assert target.dtype == torch.int64
        return gradient_times_input(model, x, target)

    assert len(list(randomisation(network(), explain, images(), [2, 0, 1]))) == 4


def test_xavier_uniform() -> None:
    states: list[dict[str, Tensor]] = []

    def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        states.append(copy.deepcopy(model.state_dict()))
        return gradient_times_input(model, x, target)

    list(randomisation(network(), explain, images(), initialise="xavier_uniform"))
    state = states[-1]
    for layer, fan_in, fan_out in (("7", 16, 3), ("3", 36, 36), ("0", 18, 36)):
        weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.8 * bound < float(weight.abs().max()) <= bound
        assert bool(((bias >= 0) & (bias < 1)).all())
        assert bias.unique().numel() == bias.numel()
    assert bool((state["1.weight"] == 1).all())
    assert bool((state["1.running_var"] == 1).all())


def test_an_initialisation_of_ones_own() -> None:
    def zero(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            nn.init.zeros_(parameter)

    stages = list(randomisation(network(), gradient_times_input, images(), initialise=zero))
    for stage in stages:
        assert stage.spearman.tolist() == [0, 0, 0]
        assert stage.cosine.tolist() == [0, 0, 0]


def test_layers_of_ones_own() -> None:
    model = nn.Sequential(network()[:4], network()[4:]).eval()
    states: list[dict[str, Tensor]] = []

    def explain(stage: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        states.append(copy.deepcopy(stage.state_dict()))
        return gradient_times_input(stage, x, target)

    stages = list(randomisation(model, explain, images(), layers=["0", "1.7"]))
    assert [stage.layer for stage in stages] == ["0", "1.7"]
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert {name.rpartition(".")[0] for name in changed} == {"0.0", "0.1", "0.3"}
    changed = {name for name in states[1] if not torch.equal(states[1][name], states[2][name])}
    assert changed == {"1.7.weight", "1.7.bias"}


class Odd(nn.Module):
    """Registered from the output to the input; a parameter without a layer; a layer not called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.gate = nn.Module()
        self.gate.scale = nn.Parameter(torch.arange(1.0, 5.0))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.stem = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        logits: Tensor = self.head((mixed * self.gate.scale).mean(1))
        return logits


def test_layers_run_from_the_output_to_the_input() -> None:
    torch.manual_seed(0)
    layers = randomisation_layers(Odd().double().eval(), images())
    assert layers == ["gate", "head", "attention.out_proj", "attention", "stem"]
    assert randomisation_layers(network(), images()) == LAYERS


def test_parameters_without_a_reset_are_shuffled() -> None:
    torch.manual_seed(0)
    model = Odd().double().eval()
    states: list[dict[str, Tensor]] = []

    def explain(stage: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        states.append(copy.deepcopy(stage.state_dict()))
        return gradient_times_input(stage, x, target)

    list(randomisation(model, explain, images(), seed=1))
    for name in ("gate.scale", "attention.in_proj_weight"):
        first, last = states[0][name].flatten(), states[-1][name].flatten()
        assert not torch.equal(first, last)
        assert torch.equal(first.sort().values, last.sort().values)
    assert not torch.equal(
        states[0]["head.weight"].sort().values, states[-1]["head.weight"].sort().values
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": torch.relu}, ArgumentTypeError, "model must be a torch.nn.Module"),
        ({"model": network().train()}, TrainingModeError, "model must be in eval mode"),
        ({"model": nn.Flatten()}, ArgumentError, "model must have parameters to randomise"),
        ({"model": network()[:4]}, ArgumentError, r"model must return logits of shape \(N, cl"),
        ({"x": images()[:0]}, ArgumentError, "with N at least 1"),
        ({"explain": None}, ArgumentTypeError, "explain must be a function of .* got NoneType"),
        ({"target": 3}, ArgumentError, "target must be at least 0 and below"),
        ({"layers": "7"}, ArgumentTypeError, "layers must be a list of module paths .* got str"),
        ({"layers": [7]}, ArgumentTypeError, "layers must hold module paths"),
        ({"layers": ["8"]}, ArgumentError, "layers must name modules of the model, got '8'"),
        ({"layers": ["2"]}, ArgumentError, "layers must name modules with parameters, got '2'"),
        ({"initialise": "zeros"}, ArgumentError, 'initialise must be one of "reset_parameters"'),
        ({"seed": 0.5}, ArgumentTypeError, "seed must be an int, got float"),
    ],
)
def test_arguments_that_are_none(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"model": network(), "explain": gradient_times_input, "x": images()}
    with pytest.raises(error, match=message):
        randomisation(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("relevance", "message"),
    [
        (torch.zeros(3, 4), r"relevance must have shape \(N, C, H, W\) or \(N, H, W\), got"),
        (torch.zeros(2, 6, 5), "explain must return one map per sample, 3, got 2"),
        (torch.full((3, 6, 5), torch.nan), "relevance must be finite"),
    ],
)
def test_explanations_that_are_none(relevance: Tensor, message: str) -> None:
    stages = randomisation(network(), lambda *_: relevance, images())
    with pytest.raises(ArgumentError, match=message):
        next(stages)
