"""Bad input to the methods' own arguments: kind and message of each error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError
from tests.networks import images, network


def call(name: str = "shared", **options: Any) -> Callable[[], Any]:
    return lambda: rk.attribute(network(name), images(), 1, **options)


def equilibrium(**options: Any) -> Callable[[], Any]:
    return call(method="equilibrium", **options)


def sharing(**options: Any) -> Callable[[], Any]:
    return call(method="sharing_ratio", **options)


def field(layer: Any, position: Any) -> Callable[[], Any]:
    return lambda: rk.SharingRatio(network("layers")).receptive_field(images(), layer, position)


CASES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "option",
        call(ratio=1.0),
        ArgumentTypeError,
        'options of method="rap" must be among variant, bounds, backend, rules, strict, attention, '
        "output, max_memory, precision, got ratio",
    ),
    (
        "option of lrp",
        call(method="lrp", variant="paper"),
        ArgumentTypeError,
        'options of method="lrp" must be among composite, backend, rules, strict, attention, '
        "output, max_memory, precision, got variant",
    ),
    (
        "base",
        call(method="class_distribution", base="gradient"),
        ArgumentError,
        'base must be one of "rap", "equilibrium", "sharing_ratio", "lrp", got \'gradient\'',
    ),
    ("ratio nan", equilibrium(ratio=float("nan")), ArgumentError, "ratio must be finite, got nan"),
    (
        "ratio infinite",
        equilibrium(ratio=float("inf")),
        ArgumentError,
        "ratio must be finite, got inf",
    ),
    ("ratio text", equilibrium(ratio="2"), ArgumentTypeError, "ratio must be a number, got str"),
    (
        "layer type",
        equilibrium(layer=3),
        ArgumentTypeError,
        "layer must be a module path or None, got int",
    ),
    (
        "layer unknown",
        equilibrium(layer="c"),
        ArgumentError,
        "layer must name a module of the model, got 'c' (for example 'fc')",
    ),
    (
        "layer that runs nothing",
        sharing(name="layers", layer="4"),
        ArgumentError,
        "layer must name a module whose operations the output depends on, got '4', which runs "
        "none (for example '0', '1', '10')",
    ),
    (
        "no layer",
        sharing(name="sequence"),
        ArgumentError,
        "layer must be given, as a module path, where the model has no activation function after "
        "a convolution, got None",
    ),
    (
        "start",
        sharing(start="softmax"),
        ArgumentError,
        'start must be one of "gradient", "normalised", got \'softmax\'',
    ),
    (
        "layers behind the start",
        lambda: rk.AttributionEquilibrium(network("shared"), layer="a").attribute(
            images(), 1, layers=["b"]
        ),
        ArgumentError,
        "layers must name modules before the one where relevance starts, got 'b'",
    ),
    (
        "field layer type",
        field(7, None),
        ArgumentTypeError,
        "layer must be a module path, got int",
    ),
    (
        "field position type",
        field("1", 3),
        ArgumentTypeError,
        "position must be a tuple of ints or None, got 3",
    ),
    (
        "field position outside",
        field("1", (6, 0)),
        ArgumentError,
        "position must be 2 ints within the size [6, 6] of the layer's output, got (6, 0)",
    ),
    (
        "field position negative",
        field("1", (-1, 0)),
        ArgumentError,
        "position must be 2 ints within the size [6, 6] of the layer's output, got (-1, 0)",
    ),
    (
        "field position missing",
        field("1", None),
        ArgumentError,
        "position must be 2 ints within the size [6, 6] of the layer's output, got ()",
    ),
]


@pytest.mark.parametrize(
    ("run", "kind", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_arguments(run: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        run()
    assert str(caught.value) == message
