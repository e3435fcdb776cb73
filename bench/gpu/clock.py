"""Time and memory on the device under test: CUDA events on a GPU, the wall clock on a CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from bench.timing import seconds_of

Call = Callable[[], object]


class Clock(Protocol):
    """Measures one call on its device."""

    device: torch.device

    def seconds(self, call: Call, queued: bool) -> float:
        """Seconds of one call with cold caches.

        Queued: the call is put behind other work, so that the device never waits for the host, as
        for a kernel inside a network. Else the device is idle when the call begins, as for a user.
        """

    def finish(self) -> None:
        """Wait for the device; raises what went wrong on it."""

    def allocated(self) -> int | None:
        """Bytes that tensors hold; None where that is not known."""

    def peak(self, call: Call) -> int | None:
        """The most bytes that tensors held while `call` ran."""

    def release(self) -> None:
        """Give free memory back."""


class CpuClock:
    """The wall clock; caches are not flushed and memory is not watched."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def seconds(self, call: Call, queued: bool) -> float:  # noqa: ARG002
        """See :class:`Clock`."""
        return seconds_of(call)

    def finish(self) -> None:
        """Nothing runs behind the back of a CPU."""

    def allocated(self) -> int | None:
        """Not known."""
        return None

    def peak(self, call: Call) -> int | None:
        """Only runs the call."""
        call()
        return None

    def release(self) -> None:
        """Collect garbage."""
        gc.collect()


class CudaClock:
    """CUDA events around the call, with the L2 cache flushed before it."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        cache = l2_bytes(self.device)
        # Large enough to also keep the device busy for as long as the host needs to queue a call.
        self._buffer = torch.empty(max(4 * cache, 2**29) // 4, device=self.device)

    def _flush(self) -> None:
        # Written to throw out what is there, then read: lines still to be written back would be
        # charged to the call.
        self._buffer.fill_(1.0)
        self._buffer.sum()

    def seconds(self, call: Call, queued: bool) -> float:
        """See :class:`Clock`."""
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._flush()
        if not queued:
            torch.cuda.synchronize()
        start.record()
        result = call()
        end.record()
        end.synchronize()
        del result
        return float(start.elapsed_time(end)) / 1e3

    def finish(self) -> None:
        """See :class:`Clock`."""
        torch.cuda.synchronize()

    def allocated(self) -> int | None:
        """See :class:`Clock`."""
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def peak(self, call: Call) -> int | None:
        """See :class:`Clock`."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated()

    def release(self) -> None:
        """See :class:`Clock`."""
        gc.collect()
        torch.cuda.empty_cache()


def clock_of(device: str) -> Clock:
    """The clock of "cuda" or "cpu"; on a CPU only tiny things run, which one thread does best."""
    if device == "cuda":
        return CudaClock()
    torch.set_num_threads(1)
    return CpuClock()


def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache; where torch does not tell it, more than any has."""
    found = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    return int(found) or 2**27


def sample(
    calls: Mapping[str, Call],
    clock: Clock,
    seconds: float,
    least: int,
    most: int,
    queued: bool = False,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Seconds of each call, one sample a round, in an order that rotates.

    `warm_up` untimed calls of each come first. It ends after `least` rounds and `seconds`.
    """
    for call in calls.values():
        for _ in range(warm_up):
            clock.seconds(call, queued)
    gc.collect()
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    start = time.monotonic()
    for turn in range(most):
        if turn >= least and time.monotonic() - start > seconds:
            break
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            samples[name].append(clock.seconds(calls[name], queued))
    return samples
