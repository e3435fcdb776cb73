"""What was measured beside what this library promises (bench/limits.py), in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from bench.limits import COST_LIMITS, FASTER, STEADY, CostLimit
from bench.methods import METHODS, NATIVE
from bench.nets import NETWORKS
from bench.ours import BF16, BF16_TARGETS, RAP_TARGETS, TARGETS
from bench.schema import MethodResult, ModelRun

EXCEEDED = "EXCEEDS"
# A method, the same of several targets, and the limits of both.
_TARGETS = (
    (NATIVE, RAP_TARGETS, "further_target", ""),
    (BF16, BF16_TARGETS, "bf16_further_target", "bf16 "),
)


def limit_verdict(run: ModelRun) -> str:
    """One sentence that compares RAP with its limits, or '' where there are none."""
    limit = _limit(run)
    parts = []
    if (result := find(run, NATIVE)) is not None:
        memory = result.memory
        peak = max(memory.first_call_gb, memory.second_call_gb) if memory else None
        parts += [
            _compare("cost", result.cost, limit.forwards, "forwards", result.error),
            _compare("peak memory", peak, limit.memory_gb, "GB"),
        ]
    if (result := find(run, BF16)) is not None:
        parts.append(
            _compare("bf16 cost", result.cost, limit.bf16_forwards, "forwards", result.error)
        )
    return _sentence(run, parts)


def further_target(run: ModelRun, one: str = NATIVE, several: str = RAP_TARGETS) -> float | None:
    """Forward passes of each target of RAP after the first; None where it was not measured."""
    single, all_targets = find(run, one), find(run, several)
    if single is None or all_targets is None or single.cost is None or all_targets.cost is None:
        return None
    return (all_targets.cost - single.cost) / (TARGETS - 1)


def target_verdict(run: ModelRun) -> str:
    """What a further target costs, beside its limit where there is one; '' if not measured."""
    parts = []
    for one, several, name, words in _TARGETS:
        cost, limit = further_target(run, one, several), getattr(_limit(run), name)
        result = find(run, several)
        if result is None:
            continue
        if cost is not None and limit is None:
            parts.append(f"{words}cost {cost:.2f} forwards")
        else:
            parts.append(_compare(f"{words}cost", cost, limit, "forwards", result.error))
    return _sentence(run, parts)


def faster_verdict(run: ModelRun) -> str:
    """How many times as much as ours cost those that must cost more, where both run."""
    parts = []
    for ours, others in FASTER.items():
        mine, label = find(run, ours), METHODS[ours].label
        theirs = {METHODS[name].label: _cost(run, name) for name in others}
        texts = [
            f"{other / mine.cost:.1f} ({name}{_slower(other, mine.cost)})"
            for name, other in theirs.items()
            if mine is not None and mine.cost and other
        ]
        if texts:
            parts.append(f"times the cost of {label}: {', '.join(texts)}")
        elif mine is not None and mine.error is not None and any(theirs.values()):
            parts.append(f"{label} {EXCEEDED} all others, for it does not run")
    return _sentence(run, parts, "; ")


def within_limits(run: ModelRun) -> bool:
    """Whether the run is steady and no limit that applies to it is exceeded."""
    verdicts = limit_verdict(run) + target_verdict(run) + faster_verdict(run)
    return not unsteady(run) and EXCEEDED not in verdicts


def unsteady(run: ModelRun) -> str:
    """A warning where the unit itself varied, or ''."""
    if run.forward_spread <= STEADY:
        return ""
    return (
        f"{title(run)}: the unit varied by {run.forward_spread:.0%} over the rounds, so something "
        "else ran on this machine: **the costs are not usable**."
    )


def title(run: ModelRun) -> str:
    """The network and its batch."""
    return f"{NETWORKS[run.network].label}, batch {run.input_shape[0]}"


def find(run: ModelRun, name: str) -> MethodResult | None:
    """The result of a method; None where it was not asked for."""
    return next((result for result in run.results if result.method == name), None)


def _slower(theirs: float, ours: float) -> str:
    return "" if theirs > ours else f"; ours {EXCEEDED} it"


def _cost(run: ModelRun, name: str) -> float | None:
    result = find(run, name)
    return None if result is None else result.cost


def _limit(run: ModelRun) -> CostLimit:
    return COST_LIMITS.get((run.network, run.input_shape[0]), CostLimit())


def _compare(
    what: str, value: float | None, limit: float | None, unit: str, error: str | None = None
) -> str:
    """'' where nothing was promised or measured; what does not run keeps no promise."""
    if limit is None:
        return ""
    if value is None:
        return (
            f"{what} {EXCEEDED} the limit of {limit} {unit}, for it does not run" if error else ""
        )
    relation = "within" if value <= limit else EXCEEDED
    return f"{what} {value:.2f} {relation} the limit of {limit} {unit}"


def _sentence(run: ModelRun, parts: Iterable[str], between: str = ", ") -> str:
    text = between.join(part for part in parts if part)
    return f"{title(run)}: {text}." if text else ""
