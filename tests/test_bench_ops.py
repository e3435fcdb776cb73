"""The harness of bench.ops: every op of shapes.csv can be built, checked and timed."""

from __future__ import annotations

import inspect
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


def test_work_of_a_rule() -> None:
    """In products of the layer: what a rule needs beside the z that it is handed."""
    units = {
        "vgg16.conv3_2": 3,
        "vgg16.conv3_2.targets": 1 + 2 * 5,
        "vgg16.conv3_2.epsilon": 1,
        "vgg16.conv3_2.z_plus": 2,
        "vgg16.conv3_2.alpha_beta": 3,
        "vgg16.conv3_2.equilibrium": 6,
        "vgg16.conv3_2.sharing": 1,
        "vgg16.fc6": 4,
        "vgg16.fc6.targets": 2 + 2 * 5,
        "vgg16.fc6.epsilon": 2,
        "vgg16.fc6.forward": 2,
        "vgg16.fc6.backward": 2,
    }
    for shape in choose(list(units), []):
        small = _smaller(shape)
        assert build(small).operations == units[shape.name] * small.operations(), shape.name


def test_a_kept_forward_is_handed_on() -> None:
    """Else the way back would compute the sums itself, and be timed with them."""
    (shape,) = choose(["vgg16.fc6.backward"], [])
    given = inspect.signature(reference.relprop_linear).bind(*build(_smaller(shape)).arguments)
    x, weight = given.arguments["x"], given.arguments["weight"]
    torch.testing.assert_close(given.arguments["positive"], x @ weight.clamp(min=0).T)
    torch.testing.assert_close(given.arguments["negative"], x @ (-weight).clamp(min=0).T)


def test_several_targets_are_rows_of_the_relevance() -> None:
    (shape,) = choose(["vgg16.conv3_2.targets"], [])
    x, _, z, relevance, psi, scale = build(_smaller(shape)).arguments[:6]
    assert len(x) == len(z) == 2
    assert len(relevance) == len(psi) == len(scale) == 5 * 2
    assert not torch.equal(relevance[:2], relevance[2:4])


@pytest.mark.parametrize("shape", layer_shapes(), ids=lambda shape: shape.name)
def test_some_samples_of_a_case(shape: LayerShape) -> None:
    """Parameters stay whole, and of several targets each keeps the same samples."""
    small = _smaller(shape)
    case = build(replace(small, x=(3, *small.x[1:]))).in_float64()
    op, chosen = getattr(reference, shape.op), slice(1, 3)
    whole, part = op(*case.arguments), op(*case.samples(chosen).arguments)
    if isinstance(whole, torch.Tensor):
        whole, part = [whole], [part]
    for all_rows, rows in zip(whole, part, strict=True):
        assert len(rows) == 2 * shape.targets
        torch.testing.assert_close(rows, case.rows(all_rows, chosen), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", layer_shapes(), ids=lambda shape: shape.name)
def test_every_shape_runs(shape: LayerShape, operations: ModuleType) -> None:
    result = run_shape(_smaller(shape), operations, reference, rounds=1, peaks=PEAKS)
    assert result.max_error < 1e-5
    assert result.ratio == pytest.approx(result.reference_seconds / result.native_seconds)
    assert result.gb_per_second > 0
    products = bool(shape.weight) and shape.op != "relprop_first_linear"
    assert (result.gflop_per_second > 0) == products


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
