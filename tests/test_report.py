"""The conservation report."""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rapkernels as rk
from rapkernels._optional import MissingPackageError
from rapkernels.figures import FigureError
from rapkernels.relevance import Relevance
from rapkernels.report import Report
from rapkernels.rules.base import Context

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 5),
        )
        .double()
        .eval()
    )


def explained(model: nn.Module, x: torch.Tensor, target: Any = None, **settings: Any) -> Any:
    settings.setdefault("backend", "reference")
    return rk.RAP(model, **settings).attribute(x, target, return_report=True)


def test_rows_follow_relevance_from_output_to_input(model: nn.Module) -> None:
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    relevance, report = explained(model, x)
    assert isinstance(report, Report)
    assert [(row.module, row.rule) for row in report.rows] == [
        ("7", "first_absolute"),
        ("6", "structure"),
        ("5", "identity"),
        ("4", "rap_conv"),
        ("3", "max"),
        ("2", "identity"),
        ("1", "folded"),
        ("0", "z_box"),
    ]
    assert {report.target.device, report.score.device, report.total.device} == {CPU}
    for row in report.rows:
        for column in (row.received, row.handed_on, row.absorbed, row.magnitude, row.error):
            assert column.shape == (3,)
            assert column.device == CPU
            assert column.dtype == torch.float64
        assert row.zeros.shape == row.non_finite.shape == (3,)
    for before, after in zip(report.rows, report.rows[1:], strict=False):
        torch.testing.assert_close(before.handed_on, after.received)
    last = report.rows[-1]
    relevance = relevance.cpu()
    torch.testing.assert_close(last.largest, relevance.flatten(1).abs().amax(1))
    assert torch.equal(last.zeros, (relevance == 0).flatten(1).sum(1))


def test_totals_are_those_of_the_call(model: nn.Module) -> None:
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    relevance, report = explained(model, x, [4, 0, 2])
    with torch.no_grad():
        logits = model(x).cpu()
    assert report.target.tolist() == [4, 0, 2]
    torch.testing.assert_close(report.score, logits[[0, 1, 2], [4, 0, 2]])
    torch.testing.assert_close(report.total, relevance.sum((1, 2, 3)).cpu())
    absorbed = torch.stack([row.absorbed for row in report.rows]).sum(0)
    torch.testing.assert_close(report.total + absorbed, report.score)


def test_the_authors_doubling_shows() -> None:
    """Inputs of both signs double their relevance in the authors' code: the report says so."""
    torch.manual_seed(0)
    signed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten()).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    _, report = explained(signed, x, 3, variant="author")
    worst = report.worst()
    assert worst.module == "1"
    torch.testing.assert_close(worst.handed_on, 2 * worst.received)
    _, report = explained(signed, x, 3)
    assert float(report.worst().error.max()) < 1e-12


def test_absorbed_relevance_is_no_error(model: nn.Module) -> None:
    with torch.no_grad():
        model[4].bias.fill_(-1000.0)
        model[7].bias.fill_(1.0)
    _, report = explained(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    first = report.rows[0]
    torch.testing.assert_close(first.absorbed, report.score)
    assert not first.handed_on.any()
    assert float(report.worst().error.max()) < 1e-12


def test_prints_one_line_per_row(model: nn.Module) -> None:
    _, report = explained(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), 1)
    lines = str(report).splitlines()
    assert lines[0].split()[:4] == ["node", "module", "operation", "rule"]
    assert len(lines) == 2 + len(report.rows) + 6
    assert lines[2].startswith(report.rows[0].node)
    assert "target [1, 1]" in str(report)


def marks(report: Report) -> dict[str, str]:
    """Module -> what the table's last column says of its row."""
    header, _, *lines = str(report).splitlines()
    start = header.index("worst")
    return {
        row.module: line[start:]
        for row, line in zip(report.rows, lines, strict=False)
        if line[start:]
    }


def changed(report: Report, module: str, **columns: list[float]) -> Report:
    """The report with other numbers in the rows of a module."""
    tensors = {name: torch.tensor(column) for name, column in columns.items()}
    rows = (replace(row, **tensors) if row.module == module else row for row in report.rows)
    return replace(report, rows=tuple(rows))


def test_the_worst_rows_are_marked(model: nn.Module) -> None:
    _, report = explained(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), 1)
    for row in report.rows:
        report = changed(report, row.module, error=[0.0, 0.0], absorbed=[0.0, 0.0])
    assert marks(report) == {}
    # Of one sample each; the three largest, whatever their order.
    for module, size in {"0": 0.25, "3": 1.0, "4": 0.5, "6": 0.75}.items():
        report = changed(report, module, error=[0.0, size], absorbed=[-size, 0.0])
    assert marks(report) == dict.fromkeys(("3", "4", "6"), "error, absorbed")
    assert report.worst().module == "3"
    # A share of what was sent back, not a size.
    assert torch.equal(report.sent, report.score)
    report = changed(report, "7", received=[1e3, 1e-3])
    report = changed(report, "0", absorbed=[0.0, 1e-2])
    assert marks(report)["0"] == "absorbed"
    nan = float("nan")
    report = changed(report, "1", error=[0.0, nan], non_finite=[0, 3])
    assert marks(report)["1"] == "error, non-finite"
    assert report.worst().module == "1"
    assert "non-finite" not in marks(report)["3"]


def test_rows_by_node_and_in_order(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    _, report = explained(model, x, 1)
    plan = rk.RAP(model, backend="reference").plan(x)
    for table in (report, plan):
        assert list(table) == list(table.rows)
        assert len(table) == 8
        for row in table:
            assert table[row.node] is row
            assert row.node in table
        assert "no_such_node" not in table
        with pytest.raises(KeyError, match="node must be the name of one that has a row, got 'no"):
            table["no_such_node"]
    assert plan["linear"].shape == (2, 5)


def test_times_are_those_of_the_work(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the work moves on: by 1 s per forward, by 100 s per backward."""
    now = [0.0]
    monkeypatch.setattr("rapkernels.report.clock.Clock.now", lambda _: now[0])
    monkeypatch.setattr("rapkernels.report.clock.Clock.seconds", lambda _, begin, end: end - begin)

    class Slow(rk.Rule):
        takes_targets = True

        def forward(self, ctx: Context, *args: Any) -> torch.Tensor:
            now[0] += 1
            return super().forward(ctx, *args)

        def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
            del ctx
            now[0] += 100
            return relevance

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    _, report = explained(model, x, 1, rules={"[25]": Slow})
    found = {row.module: (row.forward_seconds, row.backward_seconds) for row in report}
    slow = {"2", "5"}
    assert found == {str(n): (1, 100) if str(n) in slow else (0, 0) for n in range(8)}
    assert report[report.rows[2].node].seconds == 101
    assert "seconds: forward 2, backward 200, operations without a row 0" in str(report)
    explainer = rk.AttributionEquilibrium(model, "2", backend="reference", rules={"2": Slow})
    _, report = explainer.attribute(x, 1, return_report=True)
    assert (report.rows[0].forward_seconds, report.rows[0].backward_seconds) == (1, 100)


@pytest.mark.cpu_only
def test_times_of_a_real_clock(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    begin = time.perf_counter()
    _, report = explained(model, x, 1)
    whole = time.perf_counter() - begin
    times = [time for row in report for time in (row.forward_seconds, row.backward_seconds)]
    assert min(times) > 0
    assert sum(times) + report.other_seconds < whole
    layers = rk.AttributionEquilibrium(model, "2", backend="reference")
    _, report = layers.attribute(x, 1, return_report=True)
    # What comes after the start of relevance.
    assert report.other_seconds > 0


def test_a_data_frame_has_a_row_per_node_and_sample(model: nn.Module) -> None:
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    _, report = explained(model, x, [4, 0, 2])
    frame = report.to_frame()
    assert frame.shape == (24, 17)
    assert list(frame["node"].unique()) == [row.node for row in report]
    assert list(frame["sample"]) == [0, 1, 2] * 8
    assert list(frame["target"]) == [4, 0, 2] * 8
    for number, row in enumerate(report):
        part = frame.iloc[3 * number : 3 * number + 3]
        assert set(part["module"]) == {row.module}
        for name in ("received", "absorbed", "error", "largest", "zeros", "non_finite"):
            assert list(part[name]) == getattr(row, name).tolist()
    # All sums are those of the batch, of times too.
    total = sum(row.forward_seconds for row in report)
    assert float(frame["forward_seconds"].sum()) == pytest.approx(total)
    wide = frame.pivot(index="node", columns="sample", values="error")
    assert wide.shape == (8, 3)
    _, nothing = explained(model, torch.zeros(0, 3, 8, 8, dtype=torch.float64))
    assert list(nothing.to_frame().columns) == list(frame.columns)
    assert len(nothing.to_frame()) == 0


def test_a_data_frame_of_a_plan(model: nn.Module) -> None:
    plan = rk.RAP(model, backend="reference").plan(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    frame = plan.to_frame()
    assert list(frame.columns) == ["node", "module", "operation", "rule", "kernel", "shape", "role"]
    assert list(frame["rule"]) == [row.rule for row in plan]
    assert frame["shape"].iloc[-1] == (2, 5)


def test_packages_that_are_missing_are_named(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = explained(model, torch.randn(1, 3, 8, 8, dtype=torch.float64), 1)
    for package, call in (("pandas", report.to_frame), ("matplotlib.figure", report.plot)):
        monkeypatch.setitem(sys.modules, package, None)
        expected = (
            rf"needs the package {package.partition('.')[0]}, .* pip install 'rapkernels\[report\]'"
        )
        with pytest.raises(MissingPackageError, match=expected):
            call()


def drawn_network() -> nn.Module:
    """Of 60 operations: more than there is room for labels of."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(29)]
    return nn.Sequential(nn.Sequential(*blocks), nn.Flatten(), nn.Linear(192, 5)).double().eval()


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("network", ["small", "deep", "zero", "broken"])
def test_the_figure(model: nn.Module, network: str, samples: int, tmp_path: Path) -> None:
    if network == "deep":
        model = drawn_network()
    if network == "zero":
        nn.init.zeros_(model[7].weight)
        nn.init.zeros_(model[7].bias)
    x = torch.randn(samples, 3, 8, 8, dtype=torch.float64)
    _, report = explained(model, x, 1)
    if network == "broken":
        nan = [float("nan")] * samples
        report = changed(report, "3", error=nan, magnitude=nan, absorbed=nan)
        report = changed(report, "3", non_finite=[7] * samples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000
    panels = figure.axes
    assert [axes.get_title(loc="left").split(",")[0].split(";")[0] for axes in panels] == [
        "sum of |R|",
        "absorbed",
        "conservation error",
        "time",
    ]
    details = [axes.texts[0].get_text() for axes in panels]
    if network == "zero":
        assert details[:3] == ["0 everywhere", "nothing", "0 everywhere"]
    if network == "broken":
        assert details[0].startswith("NaN or infinite entries (red): 1 rows, the first in 3 (max")
    labels = panels[-1].get_xticklabels()
    if network != "deep":
        assert [label.get_text() for label in labels] == list("76543210")
    boxes = [label.get_window_extent() for label in labels]
    assert not any(left.overlaps(right) for left, right in itertools.pairwise(boxes))


def test_the_figure_shows_the_report(model: nn.Module) -> None:
    _, report = explained(model, torch.randn(1, 3, 8, 8, dtype=torch.float64), 1)
    report = changed(report, "4", absorbed=[0.5 * float(report.score)])
    sums, absorbed, errors, times = report.plot().axes
    line = sums.lines[0].get_ydata()
    assert list(line) == pytest.approx(
        [float((row.magnitude / report.score).abs()) for row in report]
    )
    assert list(absorbed.lines[0].get_ydata()) == pytest.approx([0, 0, 0] + [0.5] * 5)
    assert "0.5 in all; most: 0.5 in 4 (conv2d_1)" in absorbed.texts[0].get_text()
    assert len(errors.lines[0].get_ydata()) == sum(float(row.error) > 0 for row in report)
    tops = [bar.get_y() + bar.get_height() for bar in times.patches[8:]]
    assert tops == pytest.approx([1e3 * row.seconds for row in report])


def test_a_figure_that_cannot_be_written(model: nn.Module, tmp_path: Path) -> None:
    _, report = explained(model, torch.randn(1, 3, 8, 8, dtype=torch.float64), 1)
    with pytest.raises(FigureError, match="cannot be written"):
        report.plot(tmp_path / "no" / "report.png")


def test_report_of_an_empty_batch_is_empty(model: nn.Module) -> None:
    relevance, report = explained(model, torch.zeros(0, 3, 8, 8, dtype=torch.float64))
    assert relevance.shape == (0, 3, 8, 8)
    assert report.rows == ()
    assert report.target.shape == report.score.shape == report.total.shape == (0,)
    with pytest.raises(ValueError, match="empty batch"):
        report.worst()
    with pytest.raises(ValueError, match="empty batch has nothing to plot"):
        report.plot()
    assert "node" in str(report)


def test_report_does_not_change_the_result(model: nn.Module, backend: Any) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    relevance, _ = explained(model, x, 1, backend=backend)
    assert torch.equal(relevance, rk.attribute(model, x, 1, backend=backend))
