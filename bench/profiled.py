"""What a call asks of torch on the CPU: bytes of its allocator, and calls of operators.

Unlike seconds they do not depend on what else a machine does. Counted by torch's profiler; memory
that does not come from torch's allocator (scratch of oneDNN, of the C++ library) is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

# Operators of torch and of this library; the profiler has other events too.
_NAMESPACES = ("aten::", "rapkernels::")


@dataclass(frozen=True)
class Counts:
    """Of one call.

    operators: calls of operators, those that other operators make included.
    allocated: bytes handed out in total.
    peak: the most bytes handed out at one time, beyond what was there before.
    left: bytes that are still handed out at the end, what was returned included.
    """

    operators: int
    allocated: int
    peak: int
    left: int


def counts(call: Callable[[], Any]) -> Counts:
    """Count one call; what it returns lives until it has been counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        returned = call()
    found: Any = profiler.profiler
    events = found.kineto_results.events()
    sizes = [
        event.nbytes()
        for event in sorted(events, key=lambda event: event.start_ns())
        if event.name() == "[memory]"
    ]
    live = peak = 0
    for size in sizes:
        live += size
        peak = max(peak, live)
    del returned
    return Counts(
        operators=sum(event.name().startswith(_NAMESPACES) for event in events),
        allocated=sum(size for size in sizes if size > 0),
        peak=peak,
        left=live,
    )
