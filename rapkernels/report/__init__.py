"""The conservation report: what each step received, handed on and absorbed, in what time."""

from rapkernels.report.recorder import Recorder
from rapkernels.report.rows import Report, ReportRow

__all__ = ["Recorder", "Report", "ReportRow"]
