"""Class distributions: the class sets, and attributions of every kind as the base."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.methods.class_competition import class_competition
from tests.networks import NETWORKS, Function, conv, drawn, images, network, norm, seeded
from tests.test_class_competition import slow_competition

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]


class InputTimesGradient:
    """An explainer as those of the package, by autograd, that remembers what it was asked for."""

    def __init__(self, model: nn.Module, factor: float = 1.0) -> None:
        self.model = model
        self.factor = factor
        self.asked: list[Tensor] = []

    def attribute_targets(
        self, x: Tensor, targets: Tensor, layers: Sequence[str] | None = None
    ) -> Any:
        self.asked.append(targets)
        kept: dict[str, Tensor] = {}
        modules = dict(self.model.named_modules())
        hooks = [
            modules[path].register_forward_hook(
                lambda _, __, output, path=path: kept.__setitem__(path, output)
            )
            for path in layers or ()
        ]
        with torch.enable_grad():
            kept[""] = x.detach().clone().requires_grad_()
            logits = self.model(kept[""])
        for hook in hooks:
            hook.remove()
        found: dict[str, Tensor] = {}
        for path, value in kept.items():
            found[path] = torch.stack(
                [
                    self.factor
                    * value
                    * torch.autograd.grad(
                        logits.gather(1, column[:, None]).sum(), value, retain_graph=True
                    )[0]
                    for column in targets.unbind(1)
                ]
            )
        maps = found.pop("")
        return maps if layers is None else (maps, found)


def input_times_gradient(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    """The same with captum's signature."""
    return InputTimesGradient(model).attribute_targets(x, target[:, None])[0]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 7),
        ),
        seed=2,
    )


@pytest.fixture
def x() -> Tensor:
    return 5 * images(4)


@pytest.fixture
def base(model: nn.Module) -> InputTimesGradient:
    return InputTimesGradient(model)


def test_units_do_not_matter_with_the_scale_max(model: nn.Module, x: Tensor) -> None:
    def explained(factor: float, scale: Any) -> Tensor:
        base = InputTimesGradient(model, factor)
        return rk.ClassDistribution(base, scale=scale).attribute(x, 3)

    assert explained(1.0, "max").any()
    # Powers of two are exact.
    assert torch.equal(explained(2.0**-30, "max"), explained(1.0, "max") * 2.0**-30)
    assert torch.equal(explained(2.0**30, "max"), explained(1.0, "max") * 2.0**30)
    # Raw values: nothing exceeds tau once T |A| is far below it.
    assert explained(1.0, None).any()
    assert not explained(2.0**-30, None).any()
    assert torch.equal(explained(2.0**30, 2.0**30), explained(1.0, None) * 2.0**30)


def expected_from(model: nn.Module, x: Tensor, sets: Tensor, target: Sequence[int]) -> Tensor:
    """The slow formula with its defaults on maps of single samples and classes."""
    rows = []
    for n, classes in enumerate(sets.tolist()):
        one = x[n : n + 1]
        maps = torch.stack([input_times_gradient(model, one, torch.tensor([k])) for k in classes])
        place = classes.index(target[n])
        rows.append(slow_competition(maps, [place], [10.0], 0.01, True, "max"))
    return torch.cat(rows)


TARGETS = [[4, 0, 2, 6], (4, 0, 2, 6), torch.tensor([4, 0, 2, 6]), np.array([4, 0, 2, 6])]


@pytest.mark.parametrize("target", TARGETS)
def test_one_target_per_sample(base: InputTimesGradient, x: Tensor, target: Any) -> None:
    explainer = rk.ClassDistribution(base)
    sets = explainer.class_sets(x, target)
    found = explainer.attribute(x, target)
    assert found.any()
    expected = expected_from(base.model, x, sets, [4, 0, 2, 6])
    # Batches of 4 and of 1 take convolutions through different sums.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_row_is_the_sample_alone(base: InputTimesGradient, x: Tensor) -> None:
    x[2] *= 1000
    x[3] = 0
    explainer = rk.ClassDistribution(base, temperature=[1, 5, 100])
    together = explainer.attribute(x)
    for n in range(4):
        alone = explainer.attribute(x[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-10, atol=1e-12)


def test_no_target_is_the_predicted_class(base: InputTimesGradient, x: Tensor) -> None:
    with torch.no_grad():
        predicted = base.model(x).argmax(1)
    assert len(predicted.unique()) > 1
    explainer = rk.ClassDistribution(base)
    assert torch.equal(explainer.attribute(x), explainer.attribute(x, predicted))
    given = rk.ClassDistribution(base, range(7))
    assert torch.equal(given.attribute(x), given.attribute(x, predicted.tolist()))


@pytest.mark.parametrize(
    "classes", [[1, 4, 6], (1, 4, 6), torch.tensor([1, 4, 6]), np.array([1, 4, 6])]
)
def test_given_set_for_all(base: InputTimesGradient, x: Tensor, classes: Any) -> None:
    explainer = rk.ClassDistribution(base, classes)
    sets = explainer.class_sets(x, 4)
    assert sets.tolist() == [[1, 4, 6]] * 4
    found = explainer.attribute(x, 4)
    assert [asked.tolist() for asked in base.asked] == [sets.tolist()]
    expected = expected_from(base.model, x, sets, [4] * 4)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_given_set_per_sample(
    base: InputTimesGradient, x: Tensor, kind: Callable[[Any], Any]
) -> None:
    table = [[1, 4], [4, 0], [6, 4], [4, 5]]
    explainer = rk.ClassDistribution(base, kind(table))
    assert explainer.class_sets(x, 4).tolist() == table
    expected = expected_from(base.model, x, torch.tensor(table), [4] * 4)
    torch.testing.assert_close(explainer.attribute(x, 4), expected, rtol=1e-10, atol=1e-12)


def ranked(logits: Sequence[float]) -> list[int]:
    """Classes from the most to the least probable one."""
    return sorted(range(len(logits)), key=lambda k: -logits[k])


@pytest.mark.parametrize("top", [1, 2, 4, 6, 50])
def test_automatic_set(base: InputTimesGradient, x: Tensor, top: int) -> None:
    explainer = rk.ClassDistribution(base, top=top)
    with torch.no_grad():
        logits = base.model(x)
    for target in range(7):
        for row, classes in zip(logits, explainer.class_sets(x, target), strict=True):
            order = ranked(row.tolist())
            expected = [*order[: min(top, 6)], order[-1]]
            if target not in expected:
                expected = [target, *expected[:-1]]
            assert classes.tolist() == expected


def test_automatic_set_of_equal_and_vanishing_probabilities(x: Tensor) -> None:
    """Classes stay distinct where softmax would round probabilities to 0 and 1."""

    def model(x: Tensor) -> Tensor:
        rows = torch.tensor([[0.0] * 5, [1e6, -1e6, 0, -2e6, 1e6]], dtype=x.dtype)
        return rows[: x.shape[0]] + 0 * x.flatten(1).sum(1, keepdim=True)

    explainer = rk.ClassDistribution(lambda x, target: x, model=model)  # noqa: ARG005
    assert explainer.class_sets(x[:2], [0, 0]).tolist() == [[0, 1, 4], [0, 4, 3]]


def test_two_classes() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 2)))
    explainer = rk.ClassDistribution(InputTimesGradient(model))
    assert [sorted(row) for row in explainer.class_sets(images(), 1).tolist()] == [[0, 1]] * 2


def test_outputs_with_positions_of_one(x: Tensor) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 5, 6)))
    flat = nn.Sequential(model, nn.Flatten())
    base = functools.partial(input_times_gradient, flat)
    assert torch.equal(
        rk.ClassDistribution(base, model=model).attribute(x),
        rk.ClassDistribution(base, model=flat).attribute(x),
    )


# ---- many targets -------------------------------------------------------------------------------

SETS: list[Any] = [None, range(7), [4, 0, 2, 6, 1]]


@pytest.mark.parametrize("classes", SETS)
@pytest.mark.parametrize(
    "targets", [[4, 0], torch.tensor([4, 0]), [[4, 0], [0, 1], [2, 2], [6, 4]], [[6]] * 4]
)
def test_many_targets_are_separate_calls(
    base: InputTimesGradient, x: Tensor, classes: Any, targets: Any
) -> None:
    explainer = rk.ClassDistribution(base, classes)
    found = explainer.attribute_targets(x, targets)
    table = torch.as_tensor(targets)
    table = table.expand(4, -1) if table.dim() == 1 else table
    assert torch.equal(explainer.attribute_targets(x, table), found)
    assert torch.equal(explainer.attribute_targets(x, table.tolist()), found)
    assert found.shape == (table.shape[1], *x.shape)
    for t in range(table.shape[1]):
        expected = explainer.attribute(x, table[:, t])
        assert expected.any()
        assert torch.equal(found[t], expected)


def test_maps_are_computed_once(base: InputTimesGradient, x: Tensor) -> None:
    rk.ClassDistribution(base, [4, 0, 2]).attribute_targets(x, [0, 4, 2, 0])
    assert [asked.tolist() for asked in base.asked] == [[[4, 0, 2]] * 4]


def test_automatic_sets_add_only_the_targets_they_lack(base: InputTimesGradient, x: Tensor) -> None:
    with torch.no_grad():
        order = base.model(x).argsort(1, descending=True)
    explainer = rk.ClassDistribution(base)
    inside = torch.stack([order[:, 1], order[:, -1], order[:, 0]], 1)
    explainer.attribute_targets(x, inside)
    assert base.asked[-1].tolist() == order[:, [0, 1, -1]].tolist()
    explainer.attribute_targets(x, torch.cat([inside, order[:, 3:4]], 1))
    assert base.asked[-1].tolist() == order[:, [0, 1, -1, 3]].tolist()
    explainer.attribute(x, order[:, 3])
    assert base.asked[-1].tolist() == order[:, [3, 0, 1]].tolist()
    assert len(base.asked) == 3


# ---- layers -------------------------------------------------------------------------------------


def test_layers(base: InputTimesGradient, x: Tensor) -> None:
    explainer = rk.ClassDistribution(base, [4, 0, 2])
    found, inside = explainer.attribute(x, [4, 0, 2, 4], layers=["0", "3"])
    assert torch.equal(found, explainer.attribute(x, [4, 0, 2, 4]))
    _, maps = base.attribute_targets(x, torch.tensor([[4, 0, 2]] * 4), ["0", "3"])
    assert set(inside) == {"0", "3"}
    for path, value in inside.items():
        expected = slow_competition(maps[path], [0, 1, 2, 0], [10.0], 0.01, True, "max")
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    several, inner = explainer.attribute_targets(x, [[4], [0], [2], [4]], layers=["0", "3"])
    assert torch.equal(several[0], found)
    assert all(torch.equal(inner[path][0], value) for path, value in inside.items())


# ---- bases of every kind ------------------------------------------------------------------------


# captum warns that it makes the input require a gradient, as it does for every input.
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("name", ["InputXGradient", "Saliency", "IntegratedGradients", "LRP"])
def test_captum(x: Tensor, name: str) -> None:
    captum = pytest.importorskip("captum.attr")
    model = seeded(
        lambda: Function(
            lambda m, x: m.fc(m.pool(m.relu(m.bn(m.a(x)))).flatten(1)),
            a=conv(3),
            bn=norm(),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            fc=nn.Linear(36, 7),
        )
    )
    base = getattr(captum, name)(model)
    explainer = rk.ClassDistribution(base, temperature=[1, 5, 100])
    assert explainer.model is model
    target = [4, 0, 2, 6]
    sets = explainer.class_sets(x, target)
    maps = torch.stack([base.attribute(x, target=sets[:, k]) for k in range(3)]).detach()
    places = [row.index(one) for row, one in zip(sets.tolist(), target, strict=True)]
    found = explainer.attribute(x, target)
    assert found.any()
    expected = slow_competition(maps, places, [1.0, 5.0, 100.0], 0.01, True, "max")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert not found.requires_grad
    assert not x.requires_grad


def test_captum_maps_of_another_shape_than_the_input(model: nn.Module, x: Tensor) -> None:
    captum = pytest.importorskip("captum.attr")
    found = rk.ClassDistribution(captum.LayerGradCam(model, model[2])).attribute(x, 4)
    assert found.shape == (4, 1, 6, 6)
    assert found.any()


def test_functions(base: InputTimesGradient, x: Tensor) -> None:
    function = functools.partial(input_times_gradient, base.model)
    expected = rk.ClassDistribution(base).attribute(x, [4, 0, 2, 6])
    found = rk.ClassDistribution(function, model=base.model).attribute(x, [4, 0, 2, 6])
    assert torch.equal(found, expected)
    # A given set and target need no model.
    without = rk.ClassDistribution(function, [4, 0, 2]).attribute(x, 4)
    assert torch.equal(without, rk.ClassDistribution(base, [4, 0, 2]).attribute(x, 4))


def test_class_distributions_nest(base: InputTimesGradient, x: Tensor) -> None:
    inner = rk.ClassDistribution(base, [4, 0, 2])
    outer = rk.ClassDistribution(inner, [4, 0, 2], tau=0.1)
    maps = inner.attribute_targets(x, [4, 0, 2])
    expected = slow_competition(maps, [1] * 4, [10.0], 0.1, True, "max")
    torch.testing.assert_close(outer.attribute(x, 0), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_propagation(name: str) -> None:
    model, x = network(name), images(3)
    explainer = rk.RAP(model, backend="reference")
    maps = torch.stack([explainer.attribute(x, k) for k in range(4)])
    automatic = rk.ClassDistribution(explainer)
    assert automatic.model is model
    function = functools.partial(rk.attribute, model, backend="reference")
    for base in (explainer, function):
        given = rk.ClassDistribution(base, [3, 0, 2], tau=0)
        for place, target in enumerate([3, 0, 2]):
            expected = slow_competition(maps[[3, 0, 2]], [place] * 3, [10.0], 0, True, "max")
            found = given.attribute(x, target)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    sets = automatic.class_sets(x)
    maps = torch.stack([explainer.attribute(x, sets[:, k]) for k in range(3)])
    expected = slow_competition(maps, [0] * 3, [10.0], 0.01, True, "max")
    torch.testing.assert_close(automatic.attribute(x), expected, rtol=1e-12, atol=1e-14)


def test_the_largest_logit_takes_all_of_proportional_maps() -> None:
    """What RAP's maps come near to, and what the documentation says of it."""
    maps = torch.tensor([5.0, 3.0, -6.0])[:, None, None] * drawn(1, 1, 50, seed=4).abs()
    found = [class_competition(maps, torch.tensor([k]), (100.0,), 0.3) for k in range(3)]
    assert not found[0].any()
    assert not found[1].any()
    assert (found[2] < 0).sum() > 40
    found = [class_competition(maps, torch.tensor([k]), (100.0,), 0.3, False) for k in range(3)]
    assert (found[0] > 0).sum() > 40
    assert not found[1].any()
    assert not found[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(model: nn.Module, dtype: torch.dtype) -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)), dtype
    )
    found = rk.ClassDistribution(InputTimesGradient(model)).attribute(images(dtype=dtype))
    assert found.dtype == dtype
    assert found.any()


@pytest.mark.parametrize("classes", [None, [4, 0, 2]])
def test_empty_batch(base: InputTimesGradient, x: Tensor, classes: Any) -> None:
    explainer = rk.ClassDistribution(base, classes)
    assert explainer.attribute(x[:0], 4).shape == (0, 3, 6, 6)
    assert explainer.attribute(x[:0]).shape == (0, 3, 6, 6)
    assert explainer.attribute_targets(x[:0], [4, 0]).shape == (2, 0, 3, 6, 6)
    assert explainer.class_sets(x[:0], 4).shape == (0, 3)


def test_nothing_is_left_behind(base: InputTimesGradient, x: Tensor) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    image = x.clone().requires_grad_()
    found = rk.ClassDistribution(base).attribute(image)
    assert not found.requires_grad
    assert image.grad is None
    assert torch.equal(image, x)
    for name, value in base.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_settings_of_the_caller(base: InputTimesGradient, x: Tensor) -> None:
    """The model runs without autocast and gradients; the base as the caller has set them."""
    seen = []

    def noted(name: str) -> None:
        autocast = torch.is_autocast_enabled(x.device.type)
        seen.append((name, autocast, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    def model(x: Tensor) -> Tensor:
        noted("model")
        return base.model(x)

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        noted("base")
        return x * target[:, None, None, None]

    explainer = rk.ClassDistribution(attribute, model=model)
    expected = explainer.attribute(x)
    assert seen == [("model", False, False, False), *[("base", False, True, False)] * 3]
    seen.clear()
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.equal(explainer.attribute(x), expected)
    assert seen == [("model", False, False, False), *[("base", True, True, False)] * 3]
    with torch.inference_mode():
        assert torch.equal(explainer.attribute(x), expected)


def test_repr(base: InputTimesGradient) -> None:
    assert repr(rk.ClassDistribution(base, [4, 0], temperature=[1, 5], scale=None)) == (
        "ClassDistribution(InputTimesGradient, classes=[4, 0], top=2, temperature=[1.0, 5.0], "
        "tau=0.01, absolute=True, scale=None)"
    )
