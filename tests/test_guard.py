"""What RAP asks of torch, and instructions of kernels, beside committed figures: no regressions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import rapkernels as rk
from bench import calls, guard, instructions
from bench.guard import Figures, changes, other_than
from bench.profiled import counts
from bench.schema import SchemaError

pytestmark = pytest.mark.cpu_only


@pytest.fixture(scope="module")
def committed() -> Figures:
    pytest.importorskip("torchvision")
    figures = guard.read(calls.FILE)
    other = other_than(calls.versions(), figures.of)
    if other:
        pytest.skip(f"{other}: python -m bench.calls --renew")
    return figures


@pytest.mark.built_extension
def test_what_rap_asks_of_torch_is_as_committed(committed: Figures) -> None:
    """A figure that fell is a failure too: python -m bench.calls --renew."""
    assert changes(calls.measure().values, committed.values, calls.MARGIN) == []


class Wasteful:
    """RAP with copies of the input that nobody needs."""

    def __init__(self, model: nn.Module) -> None:
        self.explainer = rk.RAP(model)

    def attribute(self, x: Tensor) -> Tensor:
        waste = [torch.zeros(25, *x.shape) + 1 for _ in range(100)]
        return self.explainer.attribute(x) * waste[0][0, 0, 0, 0, 0]


@pytest.mark.built_extension
def test_waste_is_seen(committed: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"mobilenet_v3_small": calls.NETWORKS["mobilenet_v3_small"]}
    monkeypatch.setattr(calls, "NETWORKS", small)
    seen = changes(calls.measure(Wasteful).values, committed.values, calls.MARGIN)
    rose = [line for line in seen if "ROSE" in line]
    assert [line.split(":")[1] for line in rose] == [
        " allocated, bytes",
        " operators",
        " peak, bytes",
    ]


def test_counts() -> None:
    kept: list[Tensor] = []

    def call() -> Tensor:
        first = torch.ones(1000)
        second = torch.relu(first)
        del first
        kept.append(torch.ones(250))
        return second

    found = counts(call)
    assert found.allocated == 9000
    assert found.peak == 8000
    assert found.left == 5000
    assert counts(lambda: torch.ones(3).relu_()).operators >= 3


def test_changes() -> None:
    committed = {"same": 100.0, "up": 100.0, "down": 100.0, "gone": 1.0, "none": 0.0}
    found = {"same": 103.9, "up": 104.1, "down": 95.9, "new": 1.0, "none": 1.0}
    assert changes(found, committed, 0.04) == [
        "down: fell by -4.1%, from 100 to 95.9",
        "gone: gone, its figure is still committed",
        "new: new, no figure is committed",
        "none: ROSE from 0 to 1",
        "up: ROSE by +4.1%, from 100 to 104.1",
    ]
    assert changes(committed, committed, 0) == []


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    path, figures = tmp_path / "new" / "x.json", Figures({"compiler": "gcc 12"}, {"a": 1.5})
    guard.write(figures, path)
    assert guard.read(path) == figures
    path.write_text('{"of": {}, "values": {"a": "1"}}', encoding="utf-8")
    with pytest.raises(SchemaError, match=r"x.json.values.a: must be a finite number"):
        guard.read(path)


def test_figures_of_something_else_are_not_compared() -> None:
    assert other_than({"a": "1"}, {"a": "1"}) == ""
    text = other_than({"compiler": "gcc 13"}, {"compiler": "gcc 12", "level": "x86-64-v3"})
    assert text == (
        "compiler is gcc 13, the committed figures are of gcc 12, "
        "level is None, the committed figures are of x86-64-v3"
    )


def test_the_command_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Figures({"torch": "2"}, {"a": 100.0})
    monkeypatch.setattr(calls, "measure", lambda: measured)
    monkeypatch.setattr(calls, "FILE", tmp_path / "calls.json")
    assert CliRunner().invoke(calls.main, ["--renew"]).exit_code == 0
    assert "1 figures are as committed, within 2%" in CliRunner().invoke(calls.main).output
    guard.write(Figures({"torch": "2"}, {"a": 90.0}), calls.FILE)
    worse = CliRunner().invoke(calls.main)
    assert worse.exit_code == 1
    assert "a: ROSE by +11.1%, from 90 to 100" in worse.output


# ---- instructions -------------------------------------------------------------------------------

PRINTED = "gcc 12\nx86-64-v3\ngate/sum 1000\nadd/ratio 500\n"


def _dumps(folder: Path, *totals: int) -> Path:
    out = folder / "callgrind.out"
    for i, total in enumerate(totals, start=1):
        text = f"version: 1\npart: {i}\n\nevents: Ir\nsummary: {total}\n\nfn=(1) main\n1 {total}\n"
        out.with_name(f"callgrind.out.{i}").write_text(text, encoding="utf-8")
    return out


def test_instructions_per_element(tmp_path: Path) -> None:
    found = instructions.figures(PRINTED, _dumps(tmp_path, 23000, 5000))
    assert found.of == {"compiler": "gcc 12", "level": "x86-64-v3"}
    assert found.values == {"gate/sum": 23.0, "add/ratio": 10.0}


@pytest.mark.parametrize("totals", [(), (23000,)])
def test_every_call_must_have_been_counted(totals: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(instructions.CountError, match="one dump for each of 2 calls"):
        instructions.figures(PRINTED, _dumps(tmp_path, *totals))


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with these figures found and those committed."""

    def run(found: Figures, committed: Figures, *arguments: str) -> Any:
        monkeypatch.setattr(instructions, "FILE", tmp_path / "instructions.json")
        monkeypatch.setattr(instructions.shutil, "which", lambda _: "valgrind")
        monkeypatch.setattr(instructions, "count", lambda _: found)
        guard.write(committed, instructions.FILE)
        return CliRunner().invoke(instructions.main, [__file__, *arguments])

    return run


def test_more_instructions_fail(counted: Any) -> None:
    of = {"compiler": "gcc 12", "level": "x86-64-v3"}
    before = Figures(of, {"gate/sum": 20.0})
    assert counted(before, before).exit_code == 0
    for now, word in ((21.1, "ROSE by +5.5%"), (18.9, "fell by -5.5%")):
        outcome = counted(Figures(of, {"gate/sum": now}), before)
        assert outcome.exit_code == 1
        assert f"gate/sum: {word}" in outcome.output
        assert "--renew" in outcome.output
    assert counted(Figures(of, {"gate/sum": 9.0}), before, "--renew").exit_code == 0
    assert guard.read(instructions.FILE).values == {"gate/sum": 9.0}


def test_instructions_of_another_compiler_are_not_compared(counted: Any) -> None:
    of = {"compiler": "gcc 12", "level": "x86-64-v3"}
    outcome = counted(
        Figures({**of, "compiler": "gcc 13"}, {"gate/sum": 99.0}), Figures(of, {"gate/sum": 20.0})
    )
    assert outcome.exit_code == 0
    assert "not compared: compiler is gcc 13" in outcome.output


def test_without_valgrind_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions.shutil, "which", lambda _: None)
    outcome = CliRunner().invoke(instructions.main, [__file__])
    assert outcome.exit_code == 0
    assert "not counted, valgrind is not installed" in outcome.output
    with pytest.raises(instructions.CountError, match="valgrind is not installed"):
        instructions.count(Path(__file__))


def test_every_kernel_is_counted() -> None:
    """Neither kernels.h nor the CPU's own rounding has a kernel that the committed figures leave
    out, but for the settling."""
    csrc = Path(__file__).parents[1] / "csrc"
    headers = [csrc / "kernels.h", csrc / "cpu" / "rounded_weight.h"]
    declared = {
        kernel
        for header in headers
        for kernel in re.findall(r"^ *void (\w+)\(", header.read_text(encoding="utf-8"), re.M)
    }
    committed = {name.split("/")[0] for name in guard.read(instructions.FILE).values}
    # A few numbers of each sample.
    settling = {"settle_factor", "settle_shift", "settle_equilibrium"}
    assert len(declared) > 20
    assert declared - settling == committed
