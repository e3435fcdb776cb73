"""The whole test suite on the device, counted while it runs and ended when its time is over."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click

from bench.gpu import suite_plugin
from bench.gpu.messages import CUT_OFF, Reporter
from bench.gpu.results import GpuTests
from bench.gpu.settings import Deadline, stage_options
from bench.machine import ROOT

# pytest needs some seconds to end and to write its report.
GRACE = 10.0
POLL = 0.5
PROGRESS_SECONDS = 10.0
MOST_WORKERS = 8


def command(out: Path, tests: tuple[str, ...]) -> list[str]:
    """Pytest with a report, the count, and several processes where pytest-xdist is there."""
    words = [sys.executable, "-m", "pytest", "-q", "--tb=short"]
    words += [
        "-p",
        "bench.gpu.suite_plugin",
        "-p",
        "no:cacheprovider",
        f"--junitxml={out / 'tests.xml'}",
    ]
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(workers())]
    return [*words, *tests]


def workers() -> int:
    """Processes for the tests; each holds a CUDA context."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // 2))


def read_progress(path: Path, seconds: float, complete: bool) -> GpuTests:
    """The count so far; nothing where pytest has not begun."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        state = {}
    golden = state.get("golden", {})
    return GpuTests(
        complete=complete,
        seconds=seconds,
        passed=state.get("passed", 0),
        failed=state.get("failed", 0),
        skipped=state.get("skipped", 0),
        golden_passed=golden.get("passed", 0),
        golden_failed=golden.get("failed", 0),
        failures=state.get("failures", []),
    )


def text(tests: GpuTests) -> str:
    """The count in words."""
    missing = "" if tests.complete else ", cut off"
    return f"{tests.passed} passed, {tests.failed} failed, {tests.skipped} skipped{missing}"


def watch(process: subprocess.Popen[bytes], path: Path, reporter: Reporter, end: Deadline) -> int:
    """Report the count until pytest ends or its time is over; its exit status, -1 if cut off."""
    start = said = time.monotonic()
    while process.poll() is None and end.left() > GRACE:
        time.sleep(POLL)
        if time.monotonic() - said > PROGRESS_SECONDS:
            said = time.monotonic()
            tests = read_progress(path, said - start, complete=False)
            reporter.part("tests", tests)
            reporter.say(f"so far {text(replace(tests, complete=True))}")
    if process.poll() is not None:
        return process.returncode
    # As Ctrl-C does: pytest stops and still writes its report.
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=max(1.0, end.left() - 1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return -1


@click.command(help="Run the test suite on the device.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build"))
@click.option("--tests", multiple=True, help="What to give pytest. Default: the whole suite.")
@stage_options
def main(
    out: Path,
    tests: tuple[str, ...],
    device: str,
    tiny: bool,
    seconds: float,
    marked: bool,
    done: tuple[str, ...],
) -> None:
    """Run the stage; the text for users is the command's help."""
    reporter = Reporter(marked, frozenset(done))
    end = Deadline.after(seconds)
    if tiny and not tests:
        tests = ("tests/test_ops.py", "-k", "test_flat_sizes and 33")
    out.mkdir(parents=True, exist_ok=True)
    words = command(out, tests)
    reporter.say(f"RAPKERNELS_TEST_DEVICE={device} {' '.join(words[1:])}")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "progress.json"
        variables = {
            **os.environ,
            "RAPKERNELS_TEST_DEVICE": device,
            "OMP_NUM_THREADS": "2",
            suite_plugin.VARIABLE: str(path),
        }
        start = time.monotonic()
        with (out / "tests.txt").open("wb") as stream:
            process = subprocess.Popen(
                words, cwd=ROOT, env=variables, stdout=stream, stderr=subprocess.STDOUT
            )
            status = watch(process, path, reporter, end)
        # 0 and 1: all tests were run. Anything else: pytest itself was stopped or did not start.
        found = read_progress(path, time.monotonic() - start, complete=status in (0, 1))
    reporter.part("tests", found)
    for line in found.failures:
        reporter.say(f"FAILED {line}")
    reporter.detail(text(found) if status in (-1, 0, 1) else f"pytest ended with status {status}")
    raise SystemExit(CUT_OFF if status == -1 else min(abs(status), 1))


if __name__ == "__main__":
    main()
