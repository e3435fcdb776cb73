"""Peak resident memory of one method above the loaded model, each in a fresh process.

What is counted: the process imports torch and the method's library, builds the model and the
input, collects garbage and gives free pages back to the system; the resident set then is the zero.
The first call (preparing the method included: export, hooks, merged weights) and a second call
follow, and for each the highest resident set since the call began is reported, above that same
zero. So everything counts that the method makes resident: activations, copies of weights, oneDNN
scratch, code loaded on first use, and, for the second call, what the first one kept.

``python -m bench.memory NETWORK BATCH METHOD THREADS`` is that process; it prints one JSON object.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

from bench.machine import ROOT
from bench.methods import METHODS, Call
from bench.nets import load
from bench.schema import Memory, decode

SAMPLING_SECONDS = 0.001
How = Literal["high-water mark", "sampled"]


class MeasurementError(RuntimeError):
    """The measuring process did not finish; the message ends with what it last printed."""


def measure(network: str, batch: int, method: str) -> Memory:
    """Measure `method` on `network` in a fresh process with this process's thread count."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.memory"]
    arguments = [network, str(batch), method, str(torch.get_num_threads())]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise MeasurementError(f"measuring the memory of {method} on {network} failed: {last}")
    return decode(Memory, json.loads(done.stdout.strip().splitlines()[-1]), "memory")


def measure_here(network: str, batch: int, method: str) -> Memory:
    """Measure in this process, which must not have run anything large before."""
    METHODS[method].load_libraries()
    model, x = load(network, batch)
    zero = settled_resident_bytes()

    calls: list[Call] = []

    def first() -> object:
        calls.append(METHODS[method].prepare(model, x))
        return calls[0](x)

    first_peak, _ = peak_bytes(first)
    gc.collect()
    second_peak, how = peak_bytes(lambda: calls[0](x))
    return Memory((first_peak - zero) / 1e9, (second_peak - zero) / 1e9, how)


def peak_bytes(call: Callable[[], object]) -> tuple[int, How]:
    """The highest resident set while `call` runs, and how it was observed."""
    if _reset_high_water_mark():
        call()
        return _status_bytes("VmHWM"), "high-water mark"
    with _sampling() as peak:
        call()
    return peak[0], "sampled"


def _reset_high_water_mark() -> bool:
    """Writing 5 sets VmHWM to the present resident set (proc_pid_clear_refs(5), Linux 4.0)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    # Some sandboxes accept the write and ignore it.
    return _status_bytes("VmHWM") - _status_bytes("VmRSS") < 16 * 2**20


@contextlib.contextmanager
def _sampling() -> Iterator[list[int]]:
    peak = [_status_bytes("VmRSS")]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _status_bytes("VmRSS"))
            time.sleep(SAMPLING_SECONDS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def settled_resident_bytes() -> int:
    """The resident set once free memory has gone back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no field {field}; peak memory needs Linux")


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    result = measure_here(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print(json.dumps(dataclasses.asdict(result)))
