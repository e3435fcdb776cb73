"""A report as a plain text table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rapkernels.report.rows import worst_of
from rapkernels.tables import format_table

if TYPE_CHECKING:
    from rapkernels.report.rows import Report, ReportRow

# How many rows are marked for one reason.
_MARKED = 3
_LEGEND = (
    "Sums are those of the sample with the largest error in the row; zeros and non-finite entries "
    "are counted over the batch; ms is the time of the forward and the backward, of the batch.",
    f"worst: the {_MARKED} rows with the largest error of any sample, the {_MARKED} that absorb "
    "the most of what was sent back, and all that hand on NaN or infinity (non-finite). Errors of "
    "the size of rounding are no fault.",
)


def format_report(report: Report) -> str:
    """The table, what was explained, and a legend."""
    header = ("node", "module", "operation", "rule")
    sums = ("received", "handed on", "absorbed", "magnitude", "error", "largest")
    marks = marked(report)
    body = [
        (
            row.node,
            row.module,
            row.operation,
            row.rule,
            *(_number(value) for value in _worst_sample(row)),
            str(int(row.zeros.sum())),
            str(int(row.non_finite.sum())),
            f"{1e3 * row.seconds:.3g}",
            ", ".join(marks.get(row.node, ())),
        )
        for row in report.rows
    ]
    table = format_table((*header, *sums, "zeros", "non-finite", "ms", "worst"), body)
    forward = sum(row.forward_seconds for row in report.rows)
    backward = sum(row.backward_seconds for row in report.rows)
    lines = [
        f"target [{', '.join(map(str, report.targets()))}]",
        f"score {[float(_number(value)) for value in report.score.tolist()]}",
        f"total {[float(_number(value)) for value in report.total.tolist()]}",
        f"seconds: forward {forward:.3g}, backward {backward:.3g}, "
        f"operations without a row {report.other_seconds:.3g}",
        *_LEGEND,
    ]
    return "\n".join([table, *lines])


def marked(report: Report) -> dict[str, list[str]]:
    """What is worst about which nodes: "error", "absorbed", "non-finite"."""
    if report.is_empty:
        return {}
    found: dict[str, list[str]] = {}
    sizes: dict[str, Callable[[ReportRow], float]] = {
        "error": lambda row: worst_of(row.error),
        "absorbed": lambda row: worst_of(report.over_sent(row.absorbed).abs()),
    }
    for mark, size in sizes.items():
        for row in sorted(report.rows, key=size, reverse=True)[:_MARKED]:
            if size(row) > 0:
                found.setdefault(row.node, []).append(mark)
    for row in report.rows:
        if bool(row.non_finite.any()):
            found.setdefault(row.node, []).append("non-finite")
    return found


def _number(value: float) -> str:
    return f"{value:.4g}"


def _worst_sample(row: ReportRow) -> tuple[float, ...]:
    columns = row.received, row.handed_on, row.absorbed, row.magnitude, row.error, row.largest
    if not row.error.numel():
        return (0.0,) * len(columns)
    worst = int(row.error.argmax())
    return tuple(float(column[worst]) for column in columns)
