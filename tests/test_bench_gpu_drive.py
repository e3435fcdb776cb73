"""The driver of bench/gpu.sh: time, stages that fail or hang, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click import BadParameter

from bench.gpu import drive, messages, plan, results
from bench.gpu.__main__ import chosen_stages
from bench.gpu.stages import ENDING, Stage, groups, stages, time_for
from bench.gpu.store import Store
from tests.bench_gpu_samples import CARD, PROVENANCE, ROOT, TWO, op_result, start

pytestmark = pytest.mark.cpu_only


def test_messages(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = messages.Reporter(marked=True, done=frozenset({"a"}))
    assert not reporter.begin("a")
    assert reporter.begin("b")
    row = op_result(next(plan.op_rows()))
    reporter.row("ops", row)
    reporter.detail("fine")
    lines = capsys.readouterr().out.splitlines()
    found = [message for line in lines if (message := messages.parse(line))]
    assert [message.what for message in found] == ["begin", "row", "detail"]
    assert found[1].value == row
    messages.Reporter(marked=False).row("ops", row)
    assert capsys.readouterr().out == ""
    for text in ("[]", '{"what": "row", "name": "x"}', '{"what": "row", "name": "ops"}', "{"):
        with pytest.raises(ValueError, match=r"."):
            messages.parse(messages.MARK + text)


def test_time_is_kept_for_the_stages_to_come() -> None:
    order = groups(stages(TWO))
    assert [[stage.name for stage in group] for group in order] == [
        ["probe"], ["build"], ["ops"], ["fused"], ["vgg16"], ["resnet50"], ["tests", "sanitizer"],
    ]  # fmt: skip
    left, total = 540.0, 540.0
    for index, group in enumerate(order):
        limit = time_for(order[index + 1 :], left, total)
        # Whatever came before, each stage has what is kept for it.
        assert limit >= max(stage.keep for stage in group)
        left -= limit
    assert left == pytest.approx(ENDING)
    assert time_for(order[1:], 5.0, 540.0) == 0
    assert time_for([], 54.0, 54.0) == pytest.approx(54 - ENDING / 10)


def test_stages_are_chosen_by_name() -> None:
    assert [stage.name for stage in chosen_stages("ops, tests", TWO)] == ["probe", "ops", "tests"]
    assert len(chosen_stages("", TWO)) == 8
    with pytest.raises(BadParameter, match="no stage x; there are probe, build, ops, fused"):
        chosen_stages("ops,x", TWO)


FAKE = """
import os, subprocess, sys, time
from bench.gpu.messages import Reporter
from bench.gpu.results import GpuPeaks
words = sys.argv[1:]
done = [b for a, b in zip(words, words[1:]) if a == "--done"]
reporter = Reporter(True, frozenset(done))
def piece(key, work=lambda: None):
    if reporter.begin(key):
        work()
        reporter.end(key)
kind = words[0]
print("hello from", kind)
reporter.part("peaks", GpuPeaks(float(len(done) + 1), {}))
if kind == "crash":
    piece("a"); piece("b", os.abort); piece("c")
    reporter.detail("got to the end")
elif kind == "stuck":
    piece("a"); piece("b", lambda: time.sleep(60)); piece("c")
elif kind == "lost":
    if reporter.begin("a"):
        reporter.end("a")
        sys.exit(75)
    piece("b")
elif kind == "slow":
    child = subprocess.Popen(["sleep", "60"])
    print("child", child.pid, flush=True)
    time.sleep(60)
elif kind == "bad report":
    print("@gpu {")
elif kind == "always":
    os.abort()
elif kind.isdigit():
    sys.exit(int(kind))
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "fake_stage.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), str(ROOT)]))
    monkeypatch.setattr(drive, "GRACE", 0.5)
    monkeypatch.setattr(drive, "POLL", 0.05)
    store = Store(tmp_path, dry=True)
    start(store)
    with (tmp_path / "log.txt").open("w") as stream:
        log = drive.Log(stream, time.time())
        yield drive.Driver(tmp_path, store, log, end=time.time() + 100, total=100.0)


def fake(kind: str, **changes: Any) -> Stage:
    return replace(Stage(kind, "fake_stage", keep=0.0, group=1, arguments=(kind,)), **changes)


def ended(driver: drive.Driver) -> dict[str, str]:
    file = results.read(driver.out / "gpu.json")
    return {stage.name: stage.status for stage in file.stages}


def test_a_stage_that_fails_does_not_stop_the_others(driver: drive.Driver) -> None:
    chosen = [fake(kind, group=n) for n, kind in enumerate(["0", "1", "bad report", "74", "77"])]
    assert driver.run(chosen) == 1
    assert ended(driver) == {
        "0": "passed",
        "1": "failed",
        "bad report": "passed",
        "74": "cut off",
        "77": "does not work here",
    }
    log = (driver.out / "log.txt").read_text()
    assert "1: hello from 1" in log
    assert "a report cannot be read" in log
    assert results.read(driver.out / "gpu.json").finished
    assert "hello from 1" in (driver.out / "table.md").read_text()


def test_all_well(driver: drive.Driver) -> None:
    assert driver.run([fake("0"), fake("77")]) == 0


def test_without_a_needed_stage_nothing_else_is_run(driver: drive.Driver) -> None:
    assert driver.run([fake("1", needed=True), fake("0", group=2)]) == 2
    assert ended(driver) == {"1": "failed"}


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("crash", "got to the end; given up: b"),
        ("stuck", "hello from stuck; given up: b"),
        ("lost", "hello from lost"),
    ],
)
def test_a_stage_goes_on_without_the_piece_that_it_died_on(
    driver: drive.Driver, kind: str, detail: str
) -> None:
    assert driver.run([fake(kind, piece_seconds=0.4)]) == 1
    file = results.read(driver.out / "gpu.json")
    assert (file.stages[0].status, file.stages[0].detail) == ("failed", detail)
    # The second process was told of one or two pieces.
    assert file.peaks is not None
    assert file.peaks.copy_gb_per_second == (2.0 if kind == "lost" else 3.0)


def test_a_stage_that_dies_at_once_is_not_started_again(driver: drive.Driver) -> None:
    assert driver.run([fake("always"), fake("0", group=2)]) == 1
    assert ended(driver) == {"always": "failed", "0": "passed"}
    assert (driver.out / "log.txt").read_text().count("always: hello") == 1


def test_what_is_over_its_time_is_cut_off_with_all_its_children(driver: drive.Driver) -> None:
    driver.end = time.time() + 2 + ENDING * 100 / 540
    assert driver.run([fake("slow"), fake("0", group=2)]) == 1
    assert ended(driver) == {"slow": "cut off", "0": "not run"}
    assert time.time() < driver.end
    log = (driver.out / "log.txt").read_text()
    (child,) = [int(line.split()[-1]) for line in log.splitlines() if "slow: child" in line]
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.split()[2] != "Z"


def test_stages_of_a_group_run_beside_each_other(driver: drive.Driver) -> None:
    driver.end = time.time() + 2 + ENDING * 100 / 540
    assert driver.run([fake("slow"), fake("1")]) == 1
    assert ended(driver) == {"slow": "cut off", "1": "failed"}


def test_a_killed_run_leaves_what_it_has(tmp_path: Path) -> None:
    script = (
        "import sys, time, threading; from pathlib import Path; from bench.gpu import drive;"
        "from bench.gpu.store import Store; from tests_helper import start, stage;"
        "out = Path(sys.argv[1]); store = Store(out, True); start(store);"
        "log = drive.Log((out / 'log.txt').open('w'), time.time());"
        "drive.Driver(out, store, log, time.time() + 100, 100.0).run([stage('slow')])"
    )
    (tmp_path / "fake_stage.py").write_text(FAKE)
    (tmp_path / "tests_helper.py").write_text(
        "from bench.gpu.messages import Message\n"
        "from bench.gpu.results import Gpu\n"
        "from bench.gpu.stages import Stage\n"
        "from bench.schema import Machine, Provenance\n"
        f"from_file = {PROVENANCE!r}\n"
        f"card = {CARD!r}\n"
        "def start(store):\n"
        "    store.take(Message('part', 'provenance', from_file))\n"
        "    store.take(Message('part', 'gpu', card))\n"
        "def stage(kind):\n"
        "    return Stage(kind, 'fake_stage', 0.0, 1, (kind,))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    path = tmp_path / "gpu.json"
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if path.exists() and json.loads(path.read_text())["peaks"] is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    file = results.read(path)
    assert file.peaks is not None
    assert [(stage.name, stage.status) for stage in file.stages] == [("slow", "cut off")]
    log = (tmp_path / "log.txt").read_text()
    for line in log.splitlines():
        if "slow: child" in line:
            # Nothing is left to end the stage and its child.
            os.killpg(os.getpgid(int(line.split()[-1])), signal.SIGKILL)
