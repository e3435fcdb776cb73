"""The result file of a GPU run, ``gpu.json``: every part may be missing, for a run may be cut off.

Errors are relative to the largest entry of the float64 reference. A row with an `error` was not
timed, and has None in place of what it did not get to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from bench.schema import Provenance, load

StageStatus = Literal["passed", "failed", "cut off", "not run", "does not work here"]
Verdict = Literal["met", "missed", "not measured"]


@dataclass(frozen=True)
class Gpu:
    """The card as it was found; `clocks` holds what nvidia-smi reads, at rest and under load."""

    name: str
    capability: str
    multiprocessors: int
    l2_mb: float
    memory_gb: float
    driver: str | None
    cuda: str | None
    cudnn: int | None
    clocks: dict[str, str]


@dataclass(frozen=True)
class GpuStage:
    """One stage of the run, how it ended and how long it took."""

    name: str
    status: StageStatus
    seconds: float
    detail: str


@dataclass(frozen=True)
class GpuPeaks:
    """What the same run reached: a copy (bytes read and written), matrix products by precision."""

    copy_gb_per_second: float
    matmul_tflop_per_second: dict[str, float]


@dataclass(frozen=True)
class GpuOp:
    """One op on one shape: its error, whether repeats give the same bits, and perhaps its time.

    `cosine` is that of the first result. A row without a `tolerance` is judged by it.
    `least_share` is the share of the copy bandwidth that is promised, where one is.
    """

    name: str
    network: str
    op: str
    dtype: str
    shape: str
    error: str | None
    max_error: float | None
    tolerance: float | None
    cosine: float | None
    bit_equal: bool | None
    seconds: float | None = None
    gb_per_second: float | None = None
    share_of_copy: float | None = None
    least_share: float | None = None
    tflop_per_second: float | None = None
    share_of_matmul: float | None = None


@dataclass(frozen=True)
class GpuFusedLayer:
    """A convolution by our own kernels on the tensor cores, and by cuDNN with kernels around it.

    Errors are those of the relevance against float64. Shares are of the matrix product of the same
    precision, of each kernel's two products, and of the copy, of what both kernels must move.
    """

    name: str
    network: str
    precision: str
    shape: str
    weight: str
    stride: int
    error: str | None
    max_error: float | None
    library_error: float | None
    seconds: float | None = None
    library_seconds: float | None = None
    quotient_share: float | None = None
    contribution_share: float | None = None
    share_of_copy: float | None = None


@dataclass(frozen=True)
class GpuAgreement:
    """Relevance of a whole network against the float64 reference on the same numbers."""

    network: str
    precision: str
    method: str
    samples: int
    error: str | None
    cosine: float | None
    max_error: float | None
    total_error: float | None


@dataclass(frozen=True)
class GpuMethod:
    """One method in a run; `cost` in forward passes, memory above the loaded model and input."""

    method: str
    label: str
    error: str | None
    out_of_memory: bool
    seconds: float | None
    cost: float | None
    first_call_gb: float | None
    second_call_gb: float | None


@dataclass(frozen=True)
class GpuRun:
    """Methods on one network, measured in interleaved rounds of one process."""

    network: str
    precision: str
    batch: int
    what: Literal["methods", "smaller batch", "graphs"]
    rounds: int
    forward_seconds: float | None
    forward_spread: float | None
    methods: list[GpuMethod]


@dataclass(frozen=True)
class GpuRepeats:
    """Whether repeated calls on a whole network give the same bits."""

    network: str
    precision: str
    batch: int
    repeats: int
    deterministic_cudnn: bool
    error: str | None
    bit_equal: bool | None


@dataclass(frozen=True)
class GpuCounts:
    """Kernels that one call launches, and how often it waits for the device."""

    network: str
    method: str
    batch: int
    error: str | None
    kernel_launches: int | None
    host_syncs: int | None


@dataclass(frozen=True)
class GpuTests:
    """The test suite on the device; `complete` unless it was cut off."""

    complete: bool
    seconds: float
    passed: int
    failed: int
    skipped: int
    golden_passed: int
    golden_failed: int
    failures: list[str]


@dataclass(frozen=True)
class GpuSanitizer:
    """One tool of compute-sanitizer on a part of the kernel tests."""

    tool: str
    status: Literal["clean", "clean until cut off", "errors", "failed", "does not work here"]
    tests: int
    seconds: float
    detail: str


@dataclass(frozen=True)
class GpuLimit:
    """A promise and what became of it."""

    what: str
    limit: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True)
class GpuFile:
    """What ``bench/gpu.sh`` writes; `dry` says that it ran on the CPU, to try the script."""

    kind: Literal["gpu"]
    version: int
    provenance: Provenance
    dry: bool
    finished: bool
    gpu: Gpu
    stages: list[GpuStage] = field(default_factory=list)
    peaks: GpuPeaks | None = None
    ops: list[GpuOp] = field(default_factory=list)
    fused: list[GpuFusedLayer] = field(default_factory=list)
    agreements: list[GpuAgreement] = field(default_factory=list)
    runs: list[GpuRun] = field(default_factory=list)
    repeats: list[GpuRepeats] = field(default_factory=list)
    counts: list[GpuCounts] = field(default_factory=list)
    tests: GpuTests | None = None
    sanitizer: list[GpuSanitizer] = field(default_factory=list)
    limits: list[GpuLimit] = field(default_factory=list)


# What a stage may report: rows that are added, and parts that replace what was there.
ROWS: dict[str, type[Any]] = {
    "ops": GpuOp,
    "fused": GpuFusedLayer,
    "agreements": GpuAgreement,
    "runs": GpuRun,
    "repeats": GpuRepeats,
    "counts": GpuCounts,
    "sanitizer": GpuSanitizer,
}
PARTS: dict[str, type[Any]] = {
    "provenance": Provenance,
    "gpu": Gpu,
    "peaks": GpuPeaks,
    "tests": GpuTests,
}


def read(path: Path) -> GpuFile:
    """Read ``gpu.json``; raises SchemaError where it does not have this shape."""
    return cast(GpuFile, load(path, {"gpu": GpuFile}))
