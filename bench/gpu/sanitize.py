"""compute-sanitizer on a part of the kernel tests, where the tool works.

First it has to find two planted mistakes; where it does not, the report says so and nothing else
is run. memcheck and racecheck then run beside each other until the time is over.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from bench.gpu.messages import CUT_OFF, DOES_NOT_WORK, Reporter
from bench.gpu.results import GpuSanitizer
from bench.gpu.settings import Deadline, stage_options
from bench.gpu.suite_plugin import END_VARIABLE
from bench.machine import ROOT

PLANTED = Path(__file__).with_name("planted.cu")
TOOLS = ("memcheck", "racecheck")
FOUND = 99
# Only our kernels: those of cuDNN and cuBLAS are slow to check and not ours to mend.
FILTER = ("--kernel-name", "kns=rapkernels")
# Every op in float32 and bfloat16, and sizes around the edges of blocks, one of each.
SUBSET = (
    "(every_dtype and contiguous and signed and (dtype1 or dtype2))"
    " or (flat_sizes and 1025) or (linear_sizes and (33 or 513)) or (pool_geometry and 65)"
    " or large_odd_sizes"
)
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
PROBE_SECONDS = 60.0
# What Python and the checker need to end after the last test.
ENDING_SECONDS = 15.0
STOPPED = "out of time"
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error)|(?:RACECHECK SUMMARY: (\d+) hazard)")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its status, None if it was cut off, and all that it printed."""

    status: int | None
    text: str


def find_tool(name: str = "compute-sanitizer") -> str | None:
    """The tool on PATH or beside nvcc."""
    homes = [os.environ[key] for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    nvcc = shutil.which("nvcc")
    beside = [str(Path(nvcc).resolve().parent)] if nvcc else []
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes), *beside, *PLACES]
    return shutil.which(name, path=os.pathsep.join(folders))


def run(
    words: Sequence[str], seconds: float, log: Path, variables: dict[str, str] | None = None
) -> Outcome:
    """Run a command with a time limit; what it printed is kept also where it is cut off."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        status: int | None
        try:
            status = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            status = None
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            process.kill()
            process.wait()
    return Outcome(status, log.read_text(encoding="utf-8", errors="replace"))


def build_planted(folder: Path, capability: tuple[int, int], end: Deadline) -> tuple[Path, str]:
    """Compile the planted mistakes; the program and what went wrong, '' if nothing."""
    program = folder / "planted"
    nvcc = find_tool("nvcc")
    if nvcc is None:
        return program, "no nvcc to build the trial program with"
    arch = f"-arch=sm_{capability[0]}{capability[1]}"
    words = [nvcc, arch, "-o", str(program), str(PLANTED)]
    built = run(words, min(PROBE_SECONDS, end.left()), folder / "nvcc.txt")
    return program, "" if built.status == 0 else f"nvcc failed: {last_line(built.text)}"


def try_tool(
    tool: str, checker: str, program: Path, end: Deadline
) -> tuple[tuple[str, ...] | None, str]:
    """The options with which `checker` finds its planted mistake, or None and what happened."""
    reason = ""
    for options in (FILTER, ()):
        words = [*base(tool, checker), *options, str(program), str(TOOLS.index(checker))]
        log = program.with_name(f"{checker}-trial.txt")
        outcome = run(words, min(PROBE_SECONDS, end.left()), log)
        if outcome.status == FOUND:
            return options, ""
        # The first reason is that of the command as it is meant to be.
        reason = reason or (
            "no answer in time" if outcome.status is None else last_line(outcome.text)
        )
    return None, f"it does not find a planted mistake: {reason}"


def base(tool: str, checker: str) -> list[str]:
    """The command without its subject."""
    return [tool, "--tool", checker, "--error-exitcode", str(FOUND), "--print-limit", "20"]


def check_tests(
    tool: str, checker: str, options: Sequence[str], seconds: float, log: Path
) -> GpuSanitizer:
    """Run the chosen tests under one checker."""
    # Without torch's cache every tensor is an allocation of its own, with an end to be overrun.
    variables = {
        "RAPKERNELS_TEST_DEVICE": "cuda",
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTHONUNBUFFERED": "1",
        END_VARIABLE: str(max(1.0, seconds - ENDING_SECONDS)),
    }
    plugins = ["-p", "no:cacheprovider", "-p", "bench.gpu.suite_plugin"]
    tests = ["-m", "pytest", "tests/test_ops.py", "-v", *plugins, "-k", SUBSET]
    start = time.monotonic()
    outcome = run([*base(tool, checker), *options, sys.executable, *tests], seconds, log, variables)
    return judged(checker, outcome, time.monotonic() - start)


def judged(checker: str, outcome: Outcome, seconds: float) -> GpuSanitizer:
    """What the output of a checker means."""
    tests = len(re.findall(r" PASSED\b", outcome.text))
    failed = len(re.findall(r" (?:FAILED|ERROR)\b.*\[ *\d+%\]", outcome.text))
    errors: list[int] = [int(a or b) for a, b in _SUMMARY.findall(outcome.text)]
    reported = re.findall(r"========= (?:Invalid|Error:|Race|Misaligned).*", outcome.text)
    if outcome.status == FOUND or any(errors) or reported:
        detail = (reported or [f"{max(errors, default=0)} errors"])[0].strip("= ")
        return GpuSanitizer(checker, "errors", tests, seconds, detail[:200])
    if failed:
        return GpuSanitizer(checker, "failed", tests, seconds, f"{failed} tests failed under it")
    if outcome.status is None or STOPPED in outcome.text:
        status = "clean until cut off" if tests else "failed"
        detail = "" if tests else "out of time before the first test"
        return GpuSanitizer(checker, status, tests, seconds, detail)  # type: ignore[arg-type]
    if outcome.status != 0 or not tests:
        return GpuSanitizer(checker, "failed", tests, seconds, last_line(outcome.text)[:200])
    return GpuSanitizer(checker, "clean", tests, seconds, "")


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip("= \t") for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


def check_all(tool: str, folder: Path, end: Deadline) -> list[GpuSanitizer]:
    """Both checkers, each tried on its planted mistake first."""
    program, fault = build_planted(folder, torch.cuda.get_device_capability(0), end)

    def check(checker: str) -> GpuSanitizer:
        start = time.monotonic()
        options, reason = (None, fault) if fault else try_tool(tool, checker, program, end)
        if options is None:
            spent = time.monotonic() - start
            return GpuSanitizer(checker, "does not work here", 0, spent, reason[:200])
        return check_tests(tool, checker, options, end.left() - 4, folder / f"{checker}.txt")

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        return list(pool.map(check, TOOLS))


def exit_status(rows: Sequence[GpuSanitizer]) -> int:
    """Failed, cut off, does not work here or passed: the gravest of all checkers."""
    found = {row.status for row in rows}
    if found & {"errors", "failed"}:
        return 1
    if "does not work here" in found:
        return DOES_NOT_WORK
    return CUT_OFF if "clean until cut off" in found else 0


@click.command(help="Run a part of the kernel tests under compute-sanitizer.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build"))
@stage_options
def main(
    out: Path, device: str, tiny: bool, seconds: float, marked: bool, done: tuple[str, ...]
) -> None:
    """Run the stage; the text for users is the command's help."""
    del tiny
    reporter = Reporter(marked, frozenset(done))
    end = Deadline.after(seconds)
    tool = find_tool()
    if tool is None or device != "cuda":
        reason = "compute-sanitizer is not installed" if device == "cuda" else "it needs a GPU"
        rows = [GpuSanitizer(checker, "does not work here", 0, 0.0, reason) for checker in TOOLS]
    else:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            rows = check_all(tool, Path(scratch), end)
            logs = sorted(Path(scratch).glob("*.txt"))
            texts = [f"# {p.name}\n{p.read_text(errors='replace')[-40_000:]}" for p in logs]
            (out / "sanitizer.txt").write_text("\n".join(texts), encoding="utf-8")
    for row in rows:
        reporter.row("sanitizer", row)
    reporter.detail("; ".join(sentence(row) for row in rows))
    raise SystemExit(exit_status(rows))


def sentence(row: GpuSanitizer) -> str:
    """One checker's result in words."""
    detail = f" ({row.detail})" if row.detail else ""
    return f"{row.tool}: {row.status}, {row.tests} tests{detail}"


if __name__ == "__main__":
    main()
