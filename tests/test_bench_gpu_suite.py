"""The test suite and compute-sanitizer as stages of bench/gpu.sh, with stand-ins for the tool."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from bench.gpu import (
    messages,
    sanitize,
    settings,
    suite,
)

pytestmark = pytest.mark.cpu_only


@pytest.fixture
def tests_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_golden_x.py").write_text(
        "import os, pytest, time\n"
        "def test_a(): assert os.environ['RAPKERNELS_TEST_DEVICE'] == 'cpu'\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_b(n): assert n == 1, 'n is 2'\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('gone')\n"
        "def test_c(broken): pass\n"
        "@pytest.mark.skip\n"
        "def test_d(): pass\n"
    )
    (folder / "test_slow.py").write_text("import time\ndef test_z(): time.sleep(60)\n")
    return folder


def _suite(folder: Path, *more: str) -> Any:
    arguments = ["--device", "cpu", "--out", str(folder.parent / "out"), *more, "--marked"]
    result = CliRunner().invoke(suite.main, arguments)
    lines = [messages.parse(line) for line in result.output.splitlines()]
    parts = [line.value for line in lines if line is not None and line.what == "part"]
    return result, parts


def test_the_suite_is_counted(tests_folder: Path) -> None:
    result, parts = _suite(tests_folder, "--tests", str(tests_folder / "test_golden_x.py"))
    assert result.exit_code == 1, result.output
    tests = parts[-1]
    assert (tests.complete, tests.passed, tests.failed, tests.skipped) == (True, 2, 2, 1)
    assert (tests.golden_passed, tests.golden_failed) == (2, 2)
    assert tests.failures[0].endswith("test_b[2]: AssertionError: n is 2")
    assert "OSError: gone" in tests.failures[1]
    assert (tests_folder.parent / "out" / "tests.xml").exists()


def test_a_suite_that_takes_too_long_is_counted_too(
    tests_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "GRACE", 4.0)
    monkeypatch.setattr(suite, "PROGRESS_SECONDS", 1.0)
    result, parts = _suite(tests_folder, "--seconds", "14", "--tests", str(tests_folder))
    assert result.exit_code == messages.CUT_OFF, result.output
    assert "2 passed, 2 failed, 1 skipped, cut off" in result.output
    assert (parts[-1].complete, parts[-1].passed) == (False, 2)
    assert len(parts) > 1
    assert (tests_folder.parent / "out" / "tests.xml").exists()


def test_a_suite_that_cannot_start_has_failed(tests_folder: Path) -> None:
    result, parts = _suite(tests_folder, "--tests", str(tests_folder / "none.py"))
    assert result.exit_code == 1
    assert "pytest ended with status 4" in result.output
    assert parts[-1].complete is False


CLEAN = "a.py::t[x] PASSED [ 50%]\na.py::u PASSED [100%]\n========= ERROR SUMMARY: 0 errors\n"
BAD = "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 1 error\n"
RACE = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"


@pytest.mark.parametrize(
    ("status", "text", "verdict", "code"),
    [
        (0, CLEAN, "clean", 0),
        (99, CLEAN + BAD, "errors", 1),
        (0, CLEAN + RACE, "errors", 1),
        (None, CLEAN, "clean until cut off", messages.CUT_OFF),
        (2, CLEAN + "!!! out of time !!!", "clean until cut off", messages.CUT_OFF),
        (None, CLEAN + BAD, "errors", 1),
        (None, "", "failed", 1),
        (1, CLEAN.replace("u PASSED", "u FAILED"), "failed", 1),
        (5, "no tests ran", "failed", 1),
        (0, "no tests ran", "failed", 1),
    ],
)
def test_what_a_checker_says(status: int | None, text: str, verdict: str, code: int) -> None:
    found = sanitize.judged("memcheck", sanitize.Outcome(status, text), 1.0)
    assert found.status == verdict
    assert sanitize.exit_status([found]) == code


def _program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("script", "options", "reason"),
    [
        ("exit 99", sanitize.FILTER, ""),
        ('case "$*" in *kernel-name*) echo unknown option; exit 1;; esac; exit 99', (), ""),
        ("echo; echo '===== Device not supported'; exit 1", None, "Device not supported"),
        ("exit 0", None, "no output"),
        ("sleep 60", None, "no answer in time"),
    ],
)
def test_the_tool_is_tried_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    options: tuple[str, ...] | None,
    reason: str,
) -> None:
    monkeypatch.setattr(sanitize, "PROBE_SECONDS", 1.0)
    tool = _program(tmp_path / "tool", script)
    deadline = settings.Deadline.after(100)
    found, why = sanitize.try_tool(tool, "racecheck", tmp_path / "planted", deadline)
    assert found == options
    assert why.endswith(reason)


def test_the_checkers_run_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tool that finds planted mistakes, and in the tests nothing or, as racecheck, a race.
    tool = _program(
        tmp_path / "tool",
        f'case "$*" in *planted*) exit 99;; *racecheck*) printf "%s" "{RACE}"; exit 99;; esac\n'
        f"printf '%s' '{CLEAN}'",
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(sanitize, "build_planted", lambda folder, *_: (folder / "planted", ""))
    rows = sanitize.check_all(tool, tmp_path, settings.Deadline.after(100))
    assert [(row.tool, row.status) for row in rows] == [
        ("memcheck", "clean"),
        ("racecheck", "errors"),
    ]
    monkeypatch.setattr(sanitize, "build_planted", lambda *_: (tmp_path, "no nvcc"))
    rows = sanitize.check_all(tool, tmp_path, settings.Deadline.after(100))
    assert {row.status for row in rows} == {"does not work here"}
    assert sanitize.exit_status(rows) == messages.DOES_NOT_WORK


def test_without_the_tool_the_stage_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanitize, "find_tool", lambda *_: None)
    result = CliRunner().invoke(sanitize.main, ["--out", str(tmp_path)])
    assert result.exit_code == messages.DOES_NOT_WORK
    assert "compute-sanitizer is not installed" in result.output


def test_the_chosen_kernel_tests_exist() -> None:
    words = [sanitize.sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_ops.py"]
    done = subprocess.run(
        [*words, "-p", "no:cacheprovider", "-k", sanitize.SUBSET],
        cwd=sanitize.ROOT,
        capture_output=True,
        text=True,
    )
    names = [line for line in done.stdout.splitlines() if "::" in line]
    # Few enough for a checker that slows kernels down, and none of the kinds left out.
    assert 40 < len(names) < 250, done.stdout[-500:]
    for part in ("every_dtype", "flat_sizes", "linear_sizes", "pool_geometry", "large_odd"):
        assert any(part in name for name in names), part
