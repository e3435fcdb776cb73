"""Times parts of a call without waiting for the device in the middle of it."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import torch

# Seconds of the host, or an event on CUDA.
Moment: TypeAlias = Any


class Clock:
    """Takes moments of a run: of the host, or on CUDA of the device's current stream.

    Args:
        device: where the run is. Devices other than CPU and CUDA may still be at work at a moment
            of the host: there a time is that of handing the work out.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> Moment:
        """This moment; on CUDA the one at which the stream comes here."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, begin: Moment, end: Moment) -> float:
        """The time between two moments; on CUDA waits for the second."""
        if self._device.type != "cuda":
            return float(end - begin)
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))
