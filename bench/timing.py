"""Interleaved rounds: every method is timed in every round, in a rotating order.

A machine that slows down for a while then slows all methods down, and no method always runs after
the same neighbour. The median over the rounds is reported.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

# Shorter samples followed the neighbours on the host: the unit of one run varied by 31%.
MINIMUM_SECONDS = 1.0


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call; its result is dropped after the clock has stopped."""
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def spread(samples: Sequence[float]) -> float:
    """Interquartile range relative to the median; 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one sample a round.

    Each call runs once untimed before every sample: memory that the neighbour gave back is not paid
    by whoever comes next. One that takes less than `MINIMUM_SECONDS` is repeated within a round
    until it fills them, and the sample is the mean of the round.
    """
    repeats = {
        name: max(1, min(1000, math.ceil(MINIMUM_SECONDS / max(seconds_of(call), 1e-9))))
        for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            calls[name]()
            times = [seconds_of(calls[name]) for _ in range(repeats[name])]
            samples[name].append(sum(times) / len(times))
    return samples
