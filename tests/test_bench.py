"""The harness of bench.models: it checks first, fails on wrong results, and reports what ran."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import rapkernels
from bench import check, limits, machine, memory, merging, methods, models, nets, run, timing
from bench.limits import CostLimit, Tolerance
from bench.methods import METHODS, Call, Method
from bench.models import main
from bench.ours import BF16, BF16_TARGETS, COMPETITORS, OWN, RAP_TARGETS, TARGETS, Own, probable
from bench.schema import ModelsFile, read

pytestmark = pytest.mark.cpu_only

# Precisions are of the native backend alone.
AVAILABLE = [name for name, own in OWN.items() if not own.options]
MADE_BY = machine.provenance("a test")


@pytest.fixture
def ours(backend: str) -> str:
    """The bench's name of RAP on the backend under test."""
    return {"native": methods.NATIVE, "reference": "rap_reference"}[backend]


@pytest.fixture
def on_this_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all methods of this library use the backend under test."""
    for name in AVAILABLE:
        own = OWN[name]
        changed = replace(own, backend=backend)
        monkeypatch.setitem(OWN, name, changed)
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], prepare=changed.prepare))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 0)


def _truth(shape: tuple[int, ...] = (2, 3, 4, 4)) -> check.Truth:
    torch.manual_seed(0)
    return check.Truth(torch.randn(*shape, dtype=torch.float64), torch.tensor([0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_result_passes(dtype: torch.dtype) -> None:
    truth = _truth()
    result = check.compare("m", truth.relevance.to(dtype), 1e-7, truth)
    assert result.cosine > 1 - 1e-6
    assert result.max_error < 1e-6
    assert result.total_error < 1e-6
    assert result.conservation == 1e-7


def _one_pixel(relevance: Tensor) -> Tensor:
    relevance[1, 0, 0, 0] += 0.05 * relevance[1].abs().max()
    return relevance


def _one_sample_negated(relevance: Tensor) -> Tensor:
    relevance[1] *= -1
    return relevance


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "scaled": (lambda r: 1.05 * r, "largest error"),
    "one pixel": (_one_pixel, "largest error"),
    "one sample negated": (_one_sample_negated, "1 - cosine"),
    "shifted": (lambda r: r + 0.005 * r.abs().max(), "error of the total"),
    "zeros": (torch.zeros_like, "1 - cosine nan"),
    "nan": (lambda r: r / 0 * 0, "NaN or inf"),
    "shape": (lambda r: r[:, :, 1:], "must have shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_fails(name: str) -> None:
    spoil, message = WRONG[name]
    truth = _truth()
    with pytest.raises(check.WrongResultError, match=message):
        check.compare("m", spoil(truth.relevance.clone()), 0.0, truth)


@pytest.mark.parametrize("conservation", [1e-3, float("nan")])
def test_lost_relevance_fails(conservation: float) -> None:
    truth = _truth()
    with pytest.raises(check.WrongResultError, match="conservation error"):
        check.compare("m", truth.relevance, conservation, truth, Tolerance())


def test_every_network_is_repeatable_and_in_eval_mode() -> None:
    first, x = nets.load("tiny", 3)
    second, y = nets.load("tiny", 3)
    assert x.shape == (3, 3, 16, 16)
    assert torch.equal(x, y)
    assert not any(module.training for module in first.modules())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def _raises(_model: nn.Module, _example: Tensor) -> Call:
    raise NotImplementedError(f"no rule for {Path.home()}/x")


def _not_finite(_model: nn.Module, _example: Tensor) -> Call:
    return lambda x: torch.full_like(x, float("nan"))


def _spoilt(model: nn.Module, example: Tensor) -> Call:
    right = METHODS["input_x_gradient"].prepare(model, example)
    return lambda x: right(x)


def test_a_network_is_checked_timed_and_reported(
    monkeypatch: pytest.MonkeyPatch, ours: str
) -> None:
    monkeypatch.setitem(METHODS, "raises", Method("raises", _raises))
    monkeypatch.setitem(METHODS, "missing", Method("missing", _raises, ("no_such_module_at_all",)))
    monkeypatch.setitem(METHODS, "nan", Method("nan", _not_finite))
    names = [methods.UNIT, ours, "input_x_gradient", "raises", "missing", "nan"]
    result = run.run_network("tiny", 2, names, 2, False, MADE_BY)
    assert [item.method for item in result.checks] == [ours]
    assert result.checks[0].max_error < 1e-4
    found = {item.method: item for item in result.results}
    assert found[methods.UNIT].cost == 1.0
    median = statistics.median(found[ours].samples)
    assert found[ours].seconds == median > 0
    assert found[ours].cost == median / result.forward_seconds
    assert len(found[ours].samples) == 2
    assert found[ours].relevance_over_score == pytest.approx(1, rel=0.2)
    assert found["raises"].error == "NotImplementedError: no rule for ~/x"
    assert "no_such_module_at_all" in str(found["missing"].error)
    assert found["raises"].cost is None
    assert found["nan"].finite is False
    assert found["nan"].cost is not None


def test_a_wrong_method_is_never_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: str
) -> None:
    monkeypatch.setitem(METHODS, ours, Method("wrong", _spoilt))
    monkeypatch.setattr(run, "interleaved", lambda *_: pytest.fail("a wrong method was timed"))
    output = tmp_path / "result.json"
    arguments = ["--model", "tiny", "--batch", "2", "--method", ours, "-o", str(output)]
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 1
    assert f"nothing was timed: {ours} does not agree with the float64" in outcome.output
    assert not output.exists()


SHAPES = {"sharing_ratio": [2, 16, 16], RAP_TARGETS: [TARGETS * 2, 3, 16, 16]}


@pytest.mark.usefixtures("on_this_backend")
@pytest.mark.parametrize("name", AVAILABLE)
def test_every_method_of_ours_is_checked_against_its_own_reference(name: str) -> None:
    model, x = nets.load("tiny", 2)
    found = METHODS[name].prepare(model, x)(x)
    assert list(found.shape) == METHODS[name].shape(x.shape) == SHAPES.get(name, [2, 3, 16, 16])
    right = check.truth(model, x, name)
    assert right.relevance.dtype == torch.float64
    assert check.check_ours(name, found, model, x, right, "tiny").max_error < 1e-4
    # What another method gives for this network is refused.
    other = methods.NATIVE if OWN[name].truth != OWN[methods.NATIVE].truth else "lrp_epsilon"
    with pytest.raises(check.WrongResultError):
        check.check_ours(name, METHODS[other].prepare(model, x)(x), model, x, right, "tiny")


@pytest.mark.usefixtures("on_this_backend")
def test_all_methods_of_ours_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def truth(model: nn.Module, x: Tensor, method: str, known: Any) -> check.Truth:
        asked.append(method)
        return check.truth(model, x, method, known)

    monkeypatch.setattr(run, "truth", truth)
    result = run.run_network("tiny", 2, [methods.UNIT, *AVAILABLE], 1, False, MADE_BY)
    assert [item.error for item in result.results] == [None] * (1 + len(AVAILABLE))
    assert all(item.cost is not None and item.finite for item in result.results)
    assert [item.method for item in result.checks] == AVAILABLE
    # RAP on both backends has one truth.
    assert asked == [name for name in AVAILABLE if name != "rap_reference"]
    found = {item.method: item for item in result.results}
    # Of several targets the first is the predicted class.
    ratio = found[methods.NATIVE].relevance_over_score
    assert found[RAP_TARGETS].relevance_over_score == pytest.approx(ratio, rel=1e-4)


def test_several_targets_are_the_most_probable_classes() -> None:
    model, x = nets.load("tiny", 3)
    classes = probable(model, x, TARGETS)
    assert classes.shape == (3, TARGETS)
    assert torch.equal(classes[:, 0], model(x).argmax(dim=1))
    right = check.truth(model, x, RAP_TARGETS)
    explainer = rapkernels.RAP(model.double(), backend="reference")
    expected = explainer.attribute_targets(x.double(), classes)
    torch.testing.assert_close(right.relevance, expected.flatten(0, 1))


def test_the_reference_computes_each_class_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nets.load("tiny", 2)
    targets: list[list[int]] = []
    attribute = rapkernels.RAP.attribute

    def counted(self: Any, x: Tensor, target: Tensor, **options: Any) -> Any:
        targets.append(target.tolist())
        return attribute(self, x, target, **options)

    monkeypatch.setattr(rapkernels.RAP, "attribute", counted)
    known: check.References = {}
    names = (methods.NATIVE, RAP_TARGETS, "class_distribution")
    found = [check.truth(model, x, name, known).relevance for name in names]
    assert targets == probable(model, x, TARGETS).T.tolist()
    for name, relevance in zip(names, found, strict=True):
        torch.testing.assert_close(relevance, check.truth(model, x, name).relevance)


def _other_order(relevance: Tensor) -> Tensor:
    return relevance.unflatten(0, (TARGETS, -1)).transpose(0, 1).flatten(0, 1)


def _two_targets_swapped(relevance: Tensor) -> Tensor:
    return relevance.unflatten(0, (TARGETS, -1))[[0, 1, 2, 4, 3]].flatten(0, 1)


@pytest.mark.parametrize("spoil", [_other_order, _two_targets_swapped])
def test_each_target_is_compared(spoil: Callable[[Tensor], Tensor]) -> None:
    model, x = nets.load("tiny", 2)
    right = check.truth(model, x, RAP_TARGETS)
    check.compare("m", right.relevance, 0.0, right)
    with pytest.raises(check.WrongResultError, match="1 - cosine"):
        check.compare("m", spoil(right.relevance), 0.0, right)


def test_the_competition_is_that_of_the_most_probable_classes() -> None:
    model, x = nets.load("tiny", 2)
    right = check.truth(model, x, "class_distribution").relevance
    base = rapkernels.RAP(model.double(), backend="reference")
    classes = probable(model, x.double(), COMPETITORS)
    expected = rapkernels.ClassDistribution(base, classes).attribute(x.double(), classes[:, 0])
    torch.testing.assert_close(right, expected)
    assert (right == 0).any()


def test_a_truth_that_loses_relevance_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nets.load("tiny", 2)
    monkeypatch.setattr(check, "TRUTH_CONSERVATION", 0.0)
    for name in ("sharing_ratio", RAP_TARGETS, "class_distribution"):
        with pytest.raises(check.WrongResultError, match="itself loses relevance"):
            check.truth(model, x, name)


def test_a_map_of_another_shape_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sharing = METHODS["sharing_ratio"]
    monkeypatch.setitem(METHODS, "flat", replace(sharing, shape=list))
    result = run.run_network("tiny", 2, [methods.UNIT, "flat"], 1, False, MADE_BY)
    assert "relevance of shape [2, 16, 16], needed [2, 3, 16, 16]" in str(result.results[1].error)


@pytest.mark.parametrize(("limit", "status"), [(1e9, 0), (-1e9, 1)])
def test_the_limit_of_a_further_target_is_enforced(
    limit: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.COST_LIMITS, ("tiny", 2), CostLimit(1e9, 1e9, limit))
    arguments = ["--model", "tiny", "--batch", "2", "--repeats", "1", "--no-memory", "--enforce"]
    chosen = ["--method", methods.NATIVE, "--method", RAP_TARGETS]
    outcome = CliRunner().invoke(main, [*arguments, *chosen])
    assert outcome.exit_code == status, outcome.output
    assert ("EXCEEDS" in outcome.output) == bool(status)


def test_first_samples_are_checked(monkeypatch: pytest.MonkeyPatch, ours: str) -> None:
    """Of all targets; a wrong sample after them is not seen, one among them is."""
    monkeypatch.setattr(run, "CHECKED_SAMPLES", 2)
    model, x = nets.load("tiny", 3)
    own = replace(OWN[RAP_TARGETS], backend=OWN[ours].backend)
    right = own.prepare(model, x)(x)
    monkeypatch.setitem(OWN, RAP_TARGETS, own)
    for wrong, seen in ((2, False), (4, True)):
        spoilt = right.clone()
        spoilt[wrong] *= -1
        method = Method("spoilt", lambda *_, spoilt=spoilt: lambda _: spoilt, shape=own.shape)
        monkeypatch.setitem(METHODS, RAP_TARGETS, method)
        chosen = [methods.UNIT, RAP_TARGETS]
        call = partial(run.run_network, "tiny", 3, chosen, 1, False, MADE_BY)
        if seen:
            with pytest.raises(check.WrongResultError, match="1 - cosine"):
                call()
        else:
            assert call().checked_samples == 2


def test_what_is_measured_at_which_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "available", lambda _: True)
    assert methods.default_methods("vgg16", 4) == list(METHODS)
    small = methods.default_methods("vgg16", 16)
    assert small[-1] == "lrp_epsilon"
    assert {methods.NATIVE, BF16, "rap_reference", "captum_lrp"} < set(small)
    assert RAP_TARGETS not in small
    assert BF16 not in methods.default_methods("vit_b_16", 4)
    monkeypatch.undo()
    has = "precision" in inspect.signature(rapkernels.RAP).parameters
    assert (BF16 in methods.default_methods("vgg16", 4)) == has


def test_bfloat16_is_compared_by_cosine() -> None:
    tolerance = OWN[BF16].tolerance
    right = _truth()
    found = 1.5 * right.relevance
    assert check.compare("m", found, 0.5, right, tolerance).cosine > 0.9999
    found[0, 0] *= 1.1
    with pytest.raises(check.WrongResultError, match="1 - cosine"):
        check.compare("m", found, 0.0, right, tolerance)
    # The truth is that of RAP in float64.
    assert OWN[BF16].truth == OWN[methods.NATIVE].truth


def test_methods_without_a_bound_are_held_to_less_where_branches_add() -> None:
    branches = limits.TOLERANCES["branches"]
    held = {name for name, own in OWN.items() if own.tolerance_on("vit_b_16") == branches}
    assert held == {name for name in OWN if name.startswith("lrp_")}
    assert all(own.tolerance_on("resnet50") == own.tolerance for own in OWN.values())


@pytest.mark.skipif(not OWN[BF16].available(), reason="RAP has no precision=")
@pytest.mark.parametrize("name", [BF16, BF16_TARGETS])
def test_bfloat16_is_measured(name: str) -> None:
    result = run.run_network("tiny", 2, [methods.UNIT, name], 1, False, MADE_BY)
    assert [item.method for item in result.checks] == [name]


def test_runs_are_merged_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "STEADY", math.inf)
    output = tmp_path / "result.json"
    common = ["--model", "tiny", "--repeats", "1", "--no-memory", "--method", "input_x_gradient"]

    def measure(*arguments: str) -> list[tuple[int, int]]:
        outcome = CliRunner().invoke(main, [*common, *arguments, "--merge", str(output)])
        assert outcome.exit_code == 0, outcome.output
        document = read(output)
        assert isinstance(document, ModelsFile)
        return [(item.input_shape[0], item.rounds) for item in document.runs]

    assert measure("--batch", "3", "--batch", "1") == [(1, 1), (3, 1)]
    assert measure("--batch", "3", "--batch", "2", "--repeats", "2") == [(1, 1), (2, 2), (3, 2)]
    output.write_text("{}", encoding="utf-8")
    outcome = CliRunner().invoke(main, [*common, "--merge", str(output)])
    assert outcome.exit_code == 1
    assert "--merge: result.json: kind must be" in outcome.output


def test_a_run_that_varied_takes_no_place_of_one_that_did_not() -> None:
    steady, varied = limits.STEADY, limits.STEADY + 0.01
    runs = [("b", varied), ("a", steady), ("b", varied / 2), ("a", varied), ("c", varied)]
    chosen = merging.merged([*runs, ("c", 2 * varied)], lambda one: one[0], lambda one: one[1])
    assert chosen == [("a", steady), ("b", varied / 2), ("c", 2 * varied)]
    measured = run.run_network("tiny", 1, [methods.UNIT], 1, False, MADE_BY)
    good, bad = (replace(measured, forward_spread=spread) for spread in (steady, varied))
    assert models._document([good, bad]).runs == [good]
    assert models._document([bad, good]).runs == [good]


def test_the_command_writes_a_result_file(tmp_path: Path, ours: str) -> None:
    output = tmp_path / "new" / "result.json"
    arguments = ["--model", "tiny", "--batch", "2", "--repeats", "1", "--method", ours]
    outcome = CliRunner().invoke(main, [*arguments, "-o", str(output)])
    assert outcome.exit_code == 0, outcome.output
    document = read(output)
    assert isinstance(document, ModelsFile)
    (measured,) = document.runs
    assert [item.method for item in measured.results] == [methods.UNIT, ours]
    for item in measured.results:
        assert item.memory is not None
        assert 0 < item.memory.first_call_gb < 2
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
    assert METHODS[ours].label in outcome.output


@pytest.mark.parametrize("high_water_mark", [True, False])
def test_peak_memory_sees_an_allocation(
    high_water_mark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not high_water_mark:
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    before, _ = memory.peak_bytes(lambda: None)

    def allocate() -> None:
        for _ in range(3):
            torch.ones(2**26)

    peak, how = memory.peak_bytes(allocate)
    after, _ = memory.peak_bytes(lambda: None)
    assert 0.9 * 2**28 < peak - before < 1.5 * 2**28
    assert after - before < 2**26
    assert high_water_mark or how == "sampled"


def test_memory_of_a_method_that_fails_says_why() -> None:
    with pytest.raises(memory.MeasurementError, match=r"captum_lrp on tiny .*(no rule|No module)"):
        memory.measure("tiny", 1, "captum_lrp")


def test_spread() -> None:
    assert timing.spread([1.0]) == 0
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(2 / 3)


def test_rounds_are_interleaved_and_rotate() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    samples = timing.interleaved(calls, rounds=3)
    assert "".join(order) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}
