"""The conservation report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import rapkernels as rk
from rapkernels.report import Report

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
    assert len(lines) == 2 + len(report.rows) + 4
    assert lines[2].startswith(report.rows[0].node)
    assert "target [1, 1]" in str(report)


def test_report_of_an_empty_batch_is_empty(model: nn.Module) -> None:
    relevance, report = explained(model, torch.zeros(0, 3, 8, 8, dtype=torch.float64))
    assert relevance.shape == (0, 3, 8, 8)
    assert report.rows == ()
    assert report.target.shape == report.score.shape == report.total.shape == (0,)
    with pytest.raises(ValueError, match="empty batch"):
        report.worst()
    assert "node" in str(report)


def test_report_does_not_change_the_result(model: nn.Module, backend: Any) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    relevance, _ = explained(model, x, 1, backend=backend)
    assert torch.equal(relevance, rk.attribute(model, x, 1, backend=backend))
