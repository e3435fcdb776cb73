"""Parts of a result file of bench/gpu.sh that several tests use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench import machine, schema
from bench.gpu import messages, plan
from bench.gpu.results import (
    Gpu,
    GpuOp,
)
from bench.gpu.store import Store

ROOT = machine.ROOT
MACHINE = schema.Machine("A CPU", 16, 16, 16, "AVX2", 128.0, "Linux x86_64")
PROVENANCE = schema.Provenance(
    "bench/gpu.sh OUTDIR 9", "2026-01-02T03:04:05+00:00", "0123456789abcdef", False, MACHINE, {}
)
CARD = Gpu(
    "NVIDIA T", "9.0", 132, 62.9, 150.1, "580.1", "13.0", 91900, {"clocks.sm at rest": "345"}
)
TWO = ("vgg16", "resnet50")


def op_result(row: plan.OpRow, **changes: Any) -> GpuOp:
    size = plan.size_text(row.shape.x)
    found = GpuOp(
        row.shape.name,
        row.shape.network,
        row.shape.op,
        row.dtype,
        size,
        None,
        1e-12,
        row.tolerance,
        1.0,
        True,
    )
    if row.timed:
        found = replace(
            found, seconds=1e-3, share_of_copy=0.9, gb_per_second=1.0, least_share=row.least_share
        )
    return replace(found, **changes)


def start(store: Store) -> None:
    store.take(messages.Message("part", "provenance", PROVENANCE))
    store.take(messages.Message("part", "gpu", CARD))
