"""Many targets at once equal separate calls, for every method, network and form of the targets."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import rapkernels as rk
from rapkernels import reference
from rapkernels.errors import ArgumentError, ArgumentTypeError, NonPositiveTargetWarning
from rapkernels.explainer import Explainer
from tests.explainers import WALKERS, explainer
from tests.networks import NETWORKS, images, network

METHODS = [*WALKERS, "rap author"]
TARGETS = [[1, 0, 3], [2, 3, 3]]


def explain(method: str, name: str, backend: Any) -> Explainer:
    if method == "rap author":
        return rk.RAP(network(name), "author", backend=backend)
    return explainer(method, network(name), name, backend=backend)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_equal_separate_calls(name: str, method: str, backend: Any) -> None:
    made, x = explain(method, name, backend), images()
    together = made.attribute_targets(x, TARGETS)
    for t, target in enumerate(zip(*TARGETS, strict=True)):
        alone = made.attribute(x, list(target))
        assert together[t].shape == alone.shape
        scale = float(alone.abs().amax())
        torch.testing.assert_close(together[t], alone, rtol=0, atol=1e-9 * scale)


def test_in_float32(backend: Any) -> None:
    x = images(dtype=torch.float32)
    explainer = rk.RAP(network("residual", torch.float32), backend=backend)
    together = explainer.attribute_targets(x, [4, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonPositiveTargetWarning)
        for t, target in enumerate([4, 0]):
            alone = explainer.attribute(x, target)
            scale = float(alone.abs().amax())
            torch.testing.assert_close(together[t], alone, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "targets",
    [
        [1, 3],
        (1, 3),
        [[1, 3], [1, 3]],
        torch.tensor([1, 3]),
        torch.tensor([[1, 3], [1, 3]]),
        np.array([[1, 3], [1, 3]]),
    ],
    ids=["list", "tuple", "lists", "vector", "matrix", "array"],
)
def test_forms(targets: Any, backend: Any) -> None:
    explainer, x = rk.LRP(network("shared"), backend=backend), images()
    expected = explainer.attribute_targets(x, [1, 3])
    assert torch.equal(explainer.attribute_targets(x, targets), expected)


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
def test_index_tuples_of_outputs_with_positions(backend: Any) -> None:
    model = torch.nn.Conv2d(3, 4, 3).double().eval()
    explainer, x = rk.LRP(model, backend=backend), images()
    together = explainer.attribute_targets(x, [(1, 0, 0), (3, 2, 1)])
    for t, target in enumerate([(1, 0, 0), (3, 2, 1)]):
        assert torch.equal(together[t], explainer.attribute(x, target))
    with pytest.raises(ArgumentTypeError, match="list of index tuples"):
        explainer.attribute_targets(x, torch.tensor([1, 2]))


@pytest.mark.parametrize("method", METHODS)
def test_layers(method: str, backend: Any) -> None:
    made, x = explain(method, "residual", backend), images()
    maps, layers = made.attribute_targets(x, TARGETS, ["a", "bn"])
    assert maps.shape[:2] == (3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonPositiveTargetWarning)
        _, alone = made.attribute(x, [0, 3], layers=["a", "bn"])
    for path in ("a", "bn"):
        assert layers[path].shape == (3, *alone[path].shape)
        torch.testing.assert_close(layers[path][1], alone[path])


def test_the_split_forward_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation is called once, with the relevances of all targets."""
    calls: list[str] = []

    def counted(name: str, op: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return op(*args, **options)

        return call

    for name in reference.__all__:
        monkeypatch.setattr(reference, name, counted(name, getattr(reference, name)))
    explainer = rk.RAP(network("residual"), backend="reference")
    explainer.attribute_targets(images(), [4])
    once = list(calls)
    explainer.attribute_targets(images(), [4, 1, 2, 3])
    assert calls[len(once) :] == once


def test_an_empty_batch(backend: Any) -> None:
    for method in METHODS:
        made = explain(method, "residual", backend)
        maps = made.attribute_targets(images(0), [1, 2, 3])
        assert maps.shape == (3, *made.attribute(images(0), 1).shape)


def test_no_warning_of_losing_classes(recwarn: pytest.WarningsRecorder) -> None:
    model, x = network("shared"), images()
    assert bool((model(x) <= 0).any())
    rk.RAP(model).attribute_targets(x, range(5))  # type: ignore[arg-type]
    assert not [w for w in recwarn if w.category is NonPositiveTargetWarning]


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        ([], ArgumentError, "targets must name at least one class"),
        (3, ArgumentTypeError, "targets must be ints of shape"),
        ([[1, 2]], ArgumentError, "targets must have one row per sample, 2, got 1 rows"),
        ([1, 9], ArgumentError, "target must be at least 0 and below the number of outputs 5"),
        ([1, 2.5], ArgumentTypeError, "targets must be ints of shape"),
        (torch.rand(2, 2), ArgumentTypeError, "got dtype float"),
    ],
)
def test_errors(targets: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        rk.RAP(network("shared")).attribute_targets(images(), targets)
