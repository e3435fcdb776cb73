"""The stages of a GPU run and the time that is kept for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MINUTES = 9.0
# For the last table, and for processes that have to be ended.
ENDING = 12.0


@dataclass(frozen=True)
class Stage:
    """One module that is run.

    Attributes:
        name: as the log and the result file call it.
        module: what python -m runs.
        arguments: for it alone.
        keep: seconds, of nine minutes, that the stages before must leave to it.
        group: stages of one group run beside each other; only those that time nothing may.
        piece_seconds: a piece of work that takes longer is given up, and the stage goes on without.
        writes: whether it takes the folder of the results as --out.
        needed: without it nothing else makes sense.
    """

    name: str
    module: str
    keep: float
    group: int
    arguments: tuple[str, ...] = ()
    piece_seconds: float | None = None
    writes: bool = False
    needed: bool = False


def stages(networks: Sequence[str]) -> list[Stage]:
    """All stages, in order of worth: what is right and how fast, then the tests."""
    measured = [
        Stage(
            name,
            "bench.gpu.networks",
            keep=80,
            group=4 + index,
            arguments=("--network", name),
            piece_seconds=90,
        )
        for index, name in enumerate(networks)
    ]
    last = 4 + len(measured)
    return [
        Stage("probe", "bench.gpu.probe", keep=10, group=0, needed=True),
        Stage("build", "bench.gpu.build", keep=90, group=1, writes=True),
        Stage("ops", "bench.gpu.ops", keep=60, group=2, piece_seconds=30),
        Stage("fused", "bench.gpu.fused", keep=50, group=3, piece_seconds=30),
        *measured,
        Stage("tests", "bench.gpu.suite", keep=130, group=last, writes=True),
        Stage("sanitizer", "bench.gpu.sanitize", keep=130, group=last, writes=True),
    ]


def groups(chosen: Sequence[Stage]) -> list[list[Stage]]:
    """Stages that run beside each other, in order."""
    numbers = sorted({stage.group for stage in chosen})
    return [[stage for stage in chosen if stage.group == number] for number in numbers]


def time_for(following: Sequence[Sequence[Stage]], left: float, total: float) -> float:
    """Seconds that the next group may take: all that is left but what is kept for the others.

    Args:
        following: the groups after it.
        left: seconds until the end of the run.
        total: seconds of the whole run, which the kept times are scaled to.
    """
    kept = sum(max(stage.keep for stage in group) for group in following)
    scale = total / (60 * MINUTES)
    return max(0.0, left - (kept + ENDING) * scale)
