"""Runs the stages one after the other, each in a process of its own, and keeps what they report.

A stage that fails, hangs or loses its CUDA context takes nothing but its own piece of work with it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from bench.gpu.messages import CONTEXT_LOST, CUT_OFF, DOES_NOT_WORK, Message, parse
from bench.gpu.results import GpuStage, StageStatus
from bench.gpu.stages import Stage, groups, time_for
from bench.gpu.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_STARTS = 6
# How long a process has to end by itself when it is told to.
GRACE = 3.0
POLL = 0.5
STATUSES: dict[int, StageStatus] = {0: "passed", CUT_OFF: "cut off"}
STATUSES[DOES_NOT_WORK] = "does not work here"


@dataclass
class Progress:
    """What a stage has said, over all of its starts."""

    done: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    open: str | None = None
    opened: float = 0.0
    detail: str = ""
    last_line: str = ""

    def take(self, message: Message) -> None:
        """Follow begin, end and detail."""
        if message.what == "begin":
            self.open, self.opened = message.name, time.monotonic()
        elif message.what == "end":
            self.open = None
            self.done.append(message.name)
        elif message.what == "detail":
            self.detail = message.name

    def give_up_open(self) -> bool:
        """Leave out the piece that a process died on; False where there is none."""
        if self.open is None:
            return False
        self.given_up.append(self.open)
        self.open = None
        return True

    def text(self) -> str:
        """What the result file says of the stage."""
        parts = [self.detail or self.last_line]
        if self.given_up:
            parts.append(f"given up: {', '.join(self.given_up)}")
        return "; ".join(part for part in parts if part)[:500]


class Log:
    """Lines with the seconds since the start, on the screen and in a file."""

    def __init__(self, stream: TextIO, started: float) -> None:
        self._stream = stream
        self._started = started
        # A signal may arrive while its own thread writes.
        self._lock = threading.RLock()

    def say(self, name: str, text: str) -> None:
        """One line."""
        line = f"[{time.time() - self._started:6.1f} s] {name}: {text}"
        with self._lock:
            # Whoever started this may have gone, and the file is what counts.
            with contextlib.suppress(OSError):
                print(line, flush=True)
            self._stream.write(line + "\n")
            self._stream.flush()


@dataclass
class Driver:
    """One run: where results go, how stages are started, and when it ends (in `time.time()`)."""

    out: Path
    store: Store
    log: Log
    end: float
    total: float
    common: tuple[str, ...] = ()
    python: str = sys.executable
    now: Callable[[], float] = time.time
    _running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    _stopped: bool = False

    def run(self, chosen: Sequence[Stage]) -> int:
        """Run all stages; 0 where all passed, 2 where a needed one did not, else 1."""
        order = groups(chosen)
        statuses: list[StageStatus] = []
        for index, group in enumerate(order):
            limit = time_for(order[index + 1 :], self.end - self.now(), self.total)
            found = self._beside_each_other(group, limit)
            statuses += found
            pairs = zip(group, found, strict=True)
            if any(stage.needed and status != "passed" for stage, status in pairs):
                return 2
            self.store.write_table()
        if not self._stopped:
            self.store.finish()
        self.store.write_table()
        good = {"passed", "does not work here"}
        return 0 if set(statuses) <= good and not self._stopped else 1

    def stop(self) -> None:
        """End what runs and begin nothing more; results so far are kept."""
        self._stopped = True
        for process in list(self._running.values()):
            end_group(process)

    def _beside_each_other(self, group: Sequence[Stage], limit: float) -> list[StageStatus]:
        found: dict[str, StageStatus] = {}

        def work(stage: Stage) -> None:
            found[stage.name] = self._stage(stage, limit)

        threads = [threading.Thread(target=work, args=(stage,)) for stage in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found.get(stage.name, "failed") for stage in group]

    def _stage(self, stage: Stage, limit: float) -> StageStatus:
        start = self.now()
        progress = Progress()
        if self._stopped or limit < 1:
            self._report(stage, "not run", 0.0, "no time was left")
            self.log.say(stage.name, "not run: no time is left")
            return "not run"
        self.log.say(stage.name, f"starts, {limit:.0f} s at most")
        self._report(stage, "cut off", 0.0, "was running when the run was cut off")
        try:
            status = self._starts(stage, start + limit, progress)
        except Exception as error:  # nothing may keep the next stage from its turn
            status, progress.detail = "failed", f"{type(error).__name__}: {error}"
        if self._stopped:
            status = "cut off"
        elif progress.given_up and status == "passed":
            status = "failed"
        self._report(stage, status, self.now() - start, progress.text())
        self.log.say(stage.name, f"{status} after {self.now() - start:.1f} s: {progress.text()}")
        return status

    def _report(self, stage: Stage, status: StageStatus, seconds: float, detail: str) -> None:
        self.store.stage(GpuStage(stage.name, status, round(seconds, 1), detail))

    def _starts(self, stage: Stage, end: float, progress: Progress) -> StageStatus:
        """Start the stage, and again without the piece that a process died on."""
        faulty = False
        for _ in range(MOST_STARTS):
            code = self._once(stage, end, progress)
            if code in STATUSES or code == 1 or self._stopped:
                status = STATUSES.get(code if code is not None else CUT_OFF, "failed")
                return "failed" if faulty and status == "passed" else status
            if self.now() >= end - GRACE:
                progress.give_up_open()
                return "cut off"
            faulty = True
            if not progress.give_up_open() and code != CONTEXT_LOST:
                progress.last_line = f"ended with status {code}: {progress.last_line}"
                return "failed"
            self.log.say(stage.name, f"ended with status {code}; starts again without that piece")
        return "failed"

    def _once(self, stage: Stage, end: float, progress: Progress) -> int | None:
        """One process; its exit status, None where it was ended for taking too long."""
        words = [self.python, "-u", "-m", stage.module, *stage.arguments, *self.common]
        words += ["--marked", f"--seconds={max(1.0, end - self.now() - GRACE):.1f}"]
        words += ["--out", str(self.out)] if stage.writes else []
        for key in [*progress.done, *progress.given_up]:
            words += ["--done", key]
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._running[stage.name] = process
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        try:
            in_time = self._follow(stage, process, lines, end, progress)
            if in_time:
                # Taking down a CUDA context takes a moment.
                process.wait(timeout=max(GRACE, end - self.now()))
        finally:
            end_group(process)
            self._running.pop(stage.name, None)
        return process.returncode if in_time else None

    def _follow(
        self,
        stage: Stage,
        process: subprocess.Popen[str],
        lines: queue.Queue[str | None],
        end: float,
        progress: Progress,
    ) -> bool:
        """Take lines until the process has ended; False where its time is over."""
        while True:
            # What a process leaves running may keep its output open.
            ended = process.poll() is not None
            try:
                line = lines.get(timeout=POLL)
            except queue.Empty:
                if ended:
                    return True
                if self.now() > end or self._stopped or self._too_long(stage, progress):
                    return False
                continue
            if line is None:
                return True
            self._line(stage, line.rstrip("\n"), progress)
            if self.now() > end:
                return False

    def _too_long(self, stage: Stage, progress: Progress) -> bool:
        if stage.piece_seconds is None or progress.open is None:
            return False
        return time.monotonic() - progress.opened > stage.piece_seconds

    def _line(self, stage: Stage, line: str, progress: Progress) -> None:
        try:
            message = parse(line)
        except ValueError as error:
            self.log.say(stage.name, f"a report cannot be read: {error}")
            return
        if message is None:
            progress.last_line = line.strip() or progress.last_line
            self.log.say(stage.name, line)
            return
        progress.take(message)
        self.store.take(message)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started, and wait for it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # A process that has ended may have left others of its group behind.
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
            if number == signal.SIGTERM and process.poll() is not None and not _alive(process.pid):
                return


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
