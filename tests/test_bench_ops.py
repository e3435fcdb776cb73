"""The harness of bench.ops: every op of shapes.csv can be built, checked and timed."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bench import timing
from bench.cases import BUILDERS, build
from bench.check import WrongResultError
from bench.ops import choose, measure_peaks, run_shape
from bench.schema import Peaks
from bench.shapes import LayerShape, layer_shapes
from rapkernels import reference

pytestmark = pytest.mark.cpu_only

PEAKS = Peaks(10.0, 100.0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 0)


def _smaller(shape: LayerShape) -> LayerShape:
    """The same layer with few channels and a small image."""
    if len(shape.x) == 2:
        return replace(shape, x=(2, 12), weight=(5, 12))
    groups = 6 if shape.groups > 1 else 1
    weight = (6, 1 if groups > 1 else 4, *shape.weight[2:]) if shape.weight else ()
    channels = 6 if groups > 1 else 4
    return replace(shape, x=(2, channels, 9, 9), weight=weight, groups=groups)


def test_every_op_has_a_shape() -> None:
    assert {shape.op for shape in layer_shapes()} == set(BUILDERS)
    names = [shape.name for shape in layer_shapes()]
    assert len(set(names)) == len(names)


def test_work_of_a_layer() -> None:
    (shape,) = choose(["vgg16.conv1_2"], [])
    assert shape.result_size() == (224, 224)
    assert shape.operations() == 2 * 4 * 224 * 224 * 64 * 64 * 9
    (shape,) = choose(["vgg16.fc6"], [])
    assert shape.operations() == 2 * 4 * 25088 * 4096
    (shape,) = choose(["resnet50.conv1"], [])
    assert shape.result_size() == (112, 112)


@pytest.mark.parametrize("shape", layer_shapes(), ids=lambda shape: shape.name)
def test_every_shape_runs(shape: LayerShape, operations: ModuleType) -> None:
    result = run_shape(_smaller(shape), operations, reference, rounds=1, peaks=PEAKS)
    assert result.max_error < 1e-5
    assert result.ratio == pytest.approx(result.reference_seconds / result.native_seconds)
    assert result.gb_per_second > 0
    assert (result.gflop_per_second > 0) == (
        shape.op in {"relprop_linear", "relprop_conv"} or shape.op == "relprop_zbox_conv"
    )


@pytest.mark.parametrize("op", sorted(BUILDERS))
def test_a_wrong_op_is_never_timed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Any:
        result = getattr(reference, op)(*arguments)
        if isinstance(result, torch.Tensor):
            return 1.001 * result
        return (1.001 * result[0], *result[1:])

    monkeypatch.setattr("bench.ops.interleaved", lambda *_: pytest.fail("a wrong op was timed"))
    shape = _smaller(next(shape for shape in layer_shapes() if shape.op == op))
    with pytest.raises(WrongResultError, match=f"{op} differs from the float64 reference"):
        run_shape(shape, SimpleNamespace(**{op: wrong}), reference, rounds=1, peaks=PEAKS)


def test_bytes_count_every_tensor_once() -> None:
    shape = _smaller(choose(["vgg16.conv1_2.shift"], [])[0])
    case = build(shape)
    values, psi, scale = case.arguments
    assert case.least_bytes([values]) == 2 * 4 * values.numel() + 8 * (psi.numel() + scale.numel())


def test_peaks_are_measured() -> None:
    peaks = measure_peaks(rounds=1, elements=1000, size=16)
    assert peaks.copy_gb_per_second > 0
    assert peaks.matmul_gflop_per_second > 0
