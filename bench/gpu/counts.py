"""What one call does beside its arithmetic: kernel launches, and waits of the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]


def host_syncs(call: Call) -> int:
    """How often a call waits for the device, as torch's sync debug mode sees it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(item.message) for item in caught)


def kernel_launches(call: Call) -> int | None:
    """Kernels that a call runs on the device; None where the profiler sees none."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = profiler.events() or ()
    names = [event.name for event in events if str(event.device_type).endswith("CUDA")]
    return count_kernels(names) or None


def kernel_seconds(call: Call, names: Sequence[str]) -> dict[str, float]:
    """Seconds that a call's kernels with each of these names in theirs take; 0 where none do."""
    if not torch.cuda.is_available():
        return dict.fromkeys(names, 0.0)
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    seconds = dict.fromkeys(names, 0.0)
    for event in profiler.events() or ():
        if str(event.device_type).endswith("CUDA"):
            for name in names:
                if name in event.name:
                    seconds[name] += event.device_time_total / 1e6
    return seconds


def count_kernels(names: Sequence[str]) -> int:
    """How many of the profiler's device events are kernels."""
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)
