"""How the cost grows: checked first, timed, drawn, and its straight line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from bench import growth, machine, report, schema, timing
from bench.check import WrongResultError
from bench.growth_table import digest, line_of, render_growth

pytestmark = pytest.mark.cpu_only

MADE_BY = machine.provenance("a test")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 0)


def test_the_batch_grows(backend: str) -> None:
    run = growth.grow_with_batch("tiny", 5, 1, MADE_BY, backend)
    assert (run.network, run.grows, run.batch) == ("tiny", "batch", None)
    assert [point.count for point in run.points] == [1, 2, 4]
    assert [check.method for check in run.checks] == [f"rap, batch {n}" for n in (1, 2, 4)]
    assert all(point.seconds > 0 and point.forward_seconds > 0 for point in run.points)


def test_targets_grow(backend: str) -> None:
    run = growth.grow_with_targets("tiny", 4, 1, MADE_BY, backend)
    assert (run.grows, run.batch) == ("targets", 1)
    assert [point.count for point in run.points] == [1, 2, 3, 4]
    assert all(check.max_error < 1e-4 for check in run.checks)


@pytest.mark.parametrize("grow", [growth.grow_with_batch, growth.grow_with_targets])
def test_a_wrong_result_is_not_timed(grow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong for the last of several samples or targets only."""
    make = growth.OWN[growth.NATIVE].make

    class Wrong:
        def __init__(self, *arguments: Any) -> None:
            self.right = make(*arguments)

        def attribute(self, x: Tensor, **options: Any) -> Any:
            found = self.right.attribute(x, **options)
            return found if options or len(x) < 4 else found.flip(1)

        def attribute_targets(self, x: Tensor, targets: Tensor) -> Tensor:
            found = self.right.attribute_targets(x, targets)
            return found if targets.shape[1] < 4 else torch.cat([found[:3], -found[3:]])

    own = growth.OWN[growth.NATIVE]
    monkeypatch.setitem(growth.OWN, growth.NATIVE, replace(own, make=Wrong))
    monkeypatch.setattr(growth, "interleaved", lambda *_: pytest.fail("a wrong result was timed"))
    with pytest.raises(WrongResultError, match=r"rap, (batch 4|4 targets) does not agree"):
        grow("tiny", 4, 1, MADE_BY, "reference")


def _run(costs: dict[int, float], grows: Any = "targets", spread: float = 0.0) -> schema.Growth:
    points = [schema.Point(n, cost / 10, 0.1) for n, cost in costs.items()]
    return schema.Growth("resnet50", grows, None, MADE_BY, 5, spread, [], points)


def test_the_line_through_the_points() -> None:
    slope, rest, deviation = line_of(_run({n: 1.5 + 2 * n for n in (1, 2, 5, 20)}))
    assert (slope, rest) == (pytest.approx(2), pytest.approx(1.5))
    assert deviation < 1e-9
    square = line_of(_run({n: float(n * n) for n in (1, 2, 5, 20)}))
    assert square[2] > 0.2


def test_the_table_of_growth() -> None:
    text = render_growth([_run({1: 4.0, 2: 6.0, 3: 8.0}), _run({1: 4.0, 8: 32.0}, "batch")])
    assert "| targets of one sample: forwards (ms per target) | 1 | 2 |\n" in text
    assert "| ResNet-50 | 4.0 (400) | 6.0 (300) |" in text
    assert "| ResNet-50 | 4.0 (400) | 32.0 (400) |" in text
    assert "2.00 forwards of one sample for each target and 2.00 once; no point" in text
    assert "not usable" not in text
    assert "**the costs are not usable**" in render_growth([_run({1: 4.0, 2: 6.0}, spread=0.4)])


def test_growth_that_varied_takes_no_place_of_one_that_did_not() -> None:
    steady, varied = (_run({1: 4.0}, spread=spread) for spread in (0.0, 0.4))
    assert growth._document([steady, varied]).runs == [steady]
    assert growth._document([varied, steady]).runs == [steady]


def test_growth_is_measured_merged_and_drawn(tmp_path: Path) -> None:
    results, docs = tmp_path / "growth.json", tmp_path
    arguments = ["--model", "tiny", "--batch", "2", "--targets", "2", "--repeats", "1"]
    for _ in range(2):
        outcome = CliRunner().invoke(growth.main, [*arguments, "--merge", str(results)])
        assert outcome.exit_code == 0, outcome.output
    document = schema.read(results)
    assert isinstance(document, schema.GrowthFile)
    assert [run.grows for run in document.runs] == ["batch", "targets"]

    page, picture = docs / "speed.md", docs / "growth.svg"
    page.write_text("<!-- growth:begin -->\n<!-- growth:end -->\n", encoding="utf-8")
    (docs / "README.md").write_text("nothing of it here\n", encoding="utf-8")
    command = ["--readme", str(docs / "README.md"), "--docs", str(docs), str(results)]
    command += ["--results", str(tmp_path / "none")]
    assert CliRunner().invoke(report.main, command).exit_code == 0
    assert "(growth.svg)" in page.read_text(encoding="utf-8")
    drawn = picture.read_text(encoding="utf-8")
    assert digest(results) in drawn
    assert str(tmp_path) not in drawn
    assert CliRunner().invoke(report.main, ["--check", *command]).exit_code == 0
    picture.write_text(drawn.replace(digest(results), "another"), encoding="utf-8")
    stale = CliRunner().invoke(report.main, ["--check", *command])
    assert stale.exit_code == 1
    assert "growth.svg is not drawn from growth.json" in stale.output
