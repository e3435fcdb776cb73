"""A pytest plugin for a run that may be cut off: a running count in a file, an end in time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "RAPKERNELS_SUITE_PROGRESS"
END_VARIABLE = "RAPKERNELS_SUITE_SECONDS"
SECONDS = 1.0
MOST_FAILURES = 25


class Progress:
    """Counts reports; a test that fails in any of its phases has failed, once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = 0.0
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.golden = {"passed": 0, "failed": 0}
        self.failures: list[str] = []
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A phase of a test is over."""
        outcome = str(report.outcome)
        if outcome == "failed":
            self._fail(report)
        elif outcome == "skipped" or report.when == "call":
            self.counts[outcome] += 1
            if outcome == "passed" and "test_golden" in report.nodeid:
                self.golden["passed"] += 1
        if time.monotonic() - self._written > SECONDS:
            self.write()

    def pytest_sessionfinish(self) -> None:
        """The last word."""
        self.write()

    def _fail(self, report: Any) -> None:
        if report.nodeid in self._failed:
            return
        self._failed.add(report.nodeid)
        self.counts["failed"] += 1
        self.golden["failed"] += "test_golden" in report.nodeid
        if len(self.failures) < MOST_FAILURES:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = str(getattr(crash, "message", report.longrepr)).strip().splitlines()[:1]
            self.failures.append(f"{report.nodeid}: {''.join(reason)[:200]}")

    def write(self) -> None:
        """Write the counts, in one step."""
        self._written = time.monotonic()
        state = {**self.counts, "golden": self.golden, "failures": self.failures}
        scratch = self._path.with_suffix(".new")
        scratch.write_text(json.dumps(state), encoding="utf-8")
        scratch.replace(self._path)


class End:
    """Begins no further test when the time is over; what is open ends as always."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._session: Any = None

    def pytest_sessionstart(self, session: Any) -> None:
        """Keep the session, which can be told to stop."""
        self._session = session

    def pytest_runtest_logfinish(self) -> None:
        """A test is over."""
        if time.monotonic() > self._end:
            self._session.shouldstop = "out of time"


def pytest_configure(config: Any) -> None:
    """Count where all reports arrive: not in the workers of pytest-xdist."""
    seconds = os.environ.get(END_VARIABLE)
    if seconds:
        config.pluginmanager.register(End(float(seconds)), "rapkernels-end")
    path = os.environ.get(VARIABLE)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(Path(path)), "rapkernels-progress")
