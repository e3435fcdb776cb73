"""bench/gpu.sh without a GPU: stages and their time, partial results, verdicts, README's table."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import machine, report, schema
from bench.gpu import build, messages, plan, results
from bench.gpu.fused_verdicts import FUSED, FUSED_GRAPH, FUSED_TARGETS, UNIT_GRAPH
from bench.gpu.results import (
    GpuAgreement,
    GpuFile,
    GpuFusedLayer,
    GpuMethod,
    GpuPeaks,
    GpuRepeats,
    GpuRun,
    GpuSanitizer,
    GpuStage,
    GpuTests,
)
from bench.gpu.store import Store, write_whole
from bench.gpu.table import NOT_MEASURED, render_gpu
from bench.gpu.verdicts import NATIVE, REFERENCE, UNIT, ZENNIT, verdicts
from bench.shapes import layer_shapes
from tests.bench_gpu_samples import CARD, PROVENANCE, ROOT, TWO, op_result, start

pytestmark = pytest.mark.cpu_only


def document(**parts: Any) -> GpuFile:
    file = GpuFile("gpu", schema.VERSION, PROVENANCE, dry=False, finished=True, gpu=CARD, **parts)
    return replace(file, limits=verdicts(file))


def run_of(network: str, precision: str, batch: int = 64, **seconds: float | None) -> GpuRun:
    times = {UNIT: 1.0, NATIVE: 4.0, FUSED: 3.5, FUSED_TARGETS: 11.5, ZENNIT: 14.0}
    times |= {REFERENCE: 20.0, **seconds}
    rows = [
        GpuMethod(
            name,
            name,
            None if value else "out of memory",
            value is None,
            value,
            value,
            None if value is None else 3.0,
            None if value is None else 2.5,
        )
        for name, value in times.items()
    ]
    what = "methods" if batch in (1, 64) else "smaller batch"
    what = "graphs" if UNIT_GRAPH in seconds else what
    return GpuRun(network, precision, batch, what, 5, 1.0, 0.01, rows)  # type: ignore[arg-type]


def whole() -> GpuFile:
    """A run in which all promises are kept."""
    return document(
        peaks=GpuPeaks(4300.0, {"float32": 50.0, "tf32": 400.0, "bfloat16": 790.0}),
        ops=[op_result(row) for row in plan.op_rows()],
        agreements=[
            GpuAgreement(network, "float32", NATIVE, 4, None, 0.9999995, 1e-3, 1e-6)
            for network in TWO
        ],
        fused=[
            GpuFusedLayer(
                "resnet50.layer2.0.conv2",
                "ResNet-50",
                name,
                "64 x 128 x 56 x 56",
                "128 x 128 x 3 x 3",
                2,
                None,
                1e-5,
                2e-5,
                1e-3,
                2e-3,
                0.7,
                0.6,
                0.3,
            )
            for name in plan.PRECISIONS
        ],
        runs=[
            run
            for network in TWO
            for name in plan.PRECISIONS
            for run in (
                run_of(network, name),
                run_of(network, name, 1, **{UNIT_GRAPH: 1.0, FUSED_GRAPH: 5.0}),
            )
        ],
        repeats=[GpuRepeats(network, "float32", 8, 20, False, None, True) for network in TWO],
        tests=GpuTests(True, 100.0, 900, 0, 3, 56, 0, []),
        sanitizer=[GpuSanitizer("memcheck", "clean", 80, 50.0, "")],
        stages=[GpuStage("probe", "passed", 5.0, "NVIDIA T")],
    )


def verdict_of(file: GpuFile, what: str) -> tuple[str, str]:
    (found,) = [row for row in verdicts(file) if row.what.startswith(what)]
    return found.verdict, found.measured


def test_all_promises_kept() -> None:
    assert {row.verdict for row in whole().limits} == {"met"}
    assert len(whole().limits) == 34 + 2 + 2 * 2 * 4


def test_nothing_measured() -> None:
    assert {row.verdict for row in document().limits} == {"not measured"}


def _change_op(file: GpuFile, key: tuple[str, str], **changes: Any) -> GpuFile:
    ops = [replace(o, **changes) if (o.op, o.dtype) == key else o for o in file.ops]
    return replace(file, ops=ops)


def _change_runs(file: GpuFile, run: GpuRun, *more: GpuRun) -> GpuFile:
    same = run.network, run.precision
    rest = [other for other in file.runs if (other.network, other.precision) != same]
    return replace(file, runs=[*rest, run, *more])


MISSED = {
    "a large error": (
        lambda f: _change_op(f, ("gate", "float32"), max_error=2e-4),
        "every op in float32",
        "worst 2.0e-04",
    ),
    "a wrong op": (
        lambda f: _change_op(f, ("merge", "float64"), error="differs", max_error=None),
        "every op in float64",
        "differs",
    ),
    "other bits": (
        lambda f: _change_op(f, ("gate", "float32"), bit_equal=False),
        "repeats of every op",
        "gate in float32",
    ),
    "slow gate": (
        lambda f: _change_op(f, ("gate", "bfloat16"), share_of_copy=0.84),
        "gate",
        "84% (bfloat16",
    ),
    "slow fc6": (
        lambda f: _change_op(f, ("relprop_linear", "float32"), share_of_copy=0.79),
        "fc6 of VGG-16, batch 4",
        "79%",
    ),
    "golden": (
        lambda f: replace(f, tests=replace(f.tests, golden_failed=1)),
        "golden files",
        "1 failed",
    ),
    "cosine": (
        lambda f: replace(f, agreements=[replace(f.agreements[0], cosine=0.9999)]),
        "VGG-16 in float32 against float64",
        "0.9999000",
    ),
    "bits of a network": (
        lambda f: replace(
            f,
            repeats=[
                replace(f.repeats[0], bit_equal=False),
                replace(f.repeats[0], deterministic_cudnn=True),
            ],
        ),
        "repeats of VGG-16",
        "deterministic cuDNN only",
    ),
    "cost": (
        lambda f: _change_runs(f, run_of("vgg16", "tf32", rap=6.1)),
        "VGG-16, float32, TF32 on, batch 64: cost",
        "6.10",
    ),
    "not much faster": (
        lambda f: _change_runs(f, run_of("resnet50", "bfloat16", rap=5.0)),
        "ResNet-50, bfloat16, batch 64: faster than zennit",
        "2.8",
    ),
    "a larger error than cuDNN's": (
        lambda f: replace(f, fused=[replace(f.fused[0], max_error=3e-5)]),
        "tensor-core convolutions against float64",
        "1.50 times (resnet50.layer2.0.conv2, float32)",
    ),
    "a wrong convolution": (
        lambda f: replace(f, fused=[replace(f.fused[0], error="cosine 0.1")]),
        "tensor-core convolutions against float64",
        "cosine 0.1",
    ),
    "a slow forward kernel": (
        lambda f: replace(f, fused=[replace(row, quotient_share=0.59) for row in f.fused]),
        "forward kernel on 3 x 3 layers",
        "59% (resnet50.layer2.0.conv2)",
    ),
    "dear tensor cores": (
        lambda f: _change_runs(f, run_of("vgg16", "bfloat16", rap_fused=4.9)),
        "VGG-16, bfloat16, batch 64, tensor cores: cost",
        "4.90",
    ),
    "slower than cuDNN": (
        lambda f: _change_runs(f, run_of("vgg16", "bfloat16", rap=3.4)),
        "VGG-16, bfloat16, batch 64, tensor cores: below cuDNN's path",
        "3.50",
    ),
    "dear targets": (
        lambda f: _change_runs(f, run_of("vgg16", "tf32", rap_fused_targets=12.0)),
        "VGG-16, float32, TF32 on, batch 64, tensor cores: each further target",
        "2.12",
    ),
    "a dear graph": (
        lambda f: _change_runs(
            f, run_of("vgg16", "tf32", 1, **{UNIT_GRAPH: 1.0, FUSED_GRAPH: 6.1})
        ),
        "VGG-16, float32, TF32 on, batch 1, captured graph",
        "6.10",
    ),
    "ours runs out of memory": (
        lambda f: _change_runs(f, run_of("vgg16", "float32", rap=None)),
        "VGG-16, float32, TF32 off, batch 64: cost",
        "does not run: out of memory",
    ),
}


@pytest.mark.parametrize("name", MISSED)
def test_a_promise_that_is_not_kept(name: str) -> None:
    change, what, measured = MISSED[name]
    verdict, text = verdict_of(change(whole()), what)
    assert verdict == "missed"
    assert measured in text


def test_a_part_is_not_all() -> None:
    file = whole()
    part = replace(file, ops=file.ops[:5], tests=replace(file.tests, complete=False))
    assert verdict_of(part, "every op in float64")[0] == "not measured"
    assert f"5 of {len(layer_shapes())} shapes" in verdict_of(part, "every op in float64")[1]
    assert verdict_of(part, "golden")[0] == "not measured"


def test_a_comparison_at_a_smaller_batch_counts_and_says_so() -> None:
    file = _change_runs(
        whole(), run_of("vgg16", "float32", **{ZENNIT: None}), run_of("vgg16", "float32", 32)
    )
    what = "VGG-16, float32, TF32 off, batch 64: faster than zennit"
    assert verdict_of(file, what) == ("met", "3.5 at batch 32")
    assert "3.5 (batch 32)" in render_gpu(file)
    alone = _change_runs(whole(), run_of("vgg16", "float32", **{ZENNIT: None}))
    assert verdict_of(alone, what) == ("not measured", f"{ZENNIT}: out of memory")


def test_the_table() -> None:
    text = render_gpu(whole())
    assert "On one NVIDIA T" in text
    row = "| VGG-16 | float32, TF32 off | 64 | 1000.00 | **4.00** | 3.50 | - | 3.5 | 5.0 | 2.50 |"
    assert f"{row} 2.50 |" in text
    assert "| vgg16.fc6 | `relprop_linear` | 16 x 25088 | 1.000 ms, 90% | 1.000 ms, 90% |" in text
    assert "Of 52 limits 52 met, 0 missed, 0 not measured." in text
    assert "900 passed, 0 failed" in text
    assert "memcheck clean, 80 tests" in text
    assert "commit 0123456789, NVIDIA T (capability 9.0" in text
    full = render_gpu(whole(), full=True)
    assert (
        "| golden files of the authors' code | all tests pass | 56 passed, 0 failed | met |" in full
    )
    assert "| probe | passed | 5 | NVIDIA T |" in full


def test_the_table_of_a_run_that_was_cut_off_at_once() -> None:
    text = render_gpu(replace(document(), finished=False), full=True)
    assert "**The run was cut off.**" in text
    assert "0 met, 0 missed, 52 not measured" in text


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path, dry=False)
    start(store)
    for part in ("peaks", "tests"):
        store.take(messages.Message("part", part, getattr(whole(), part)))
    for table in ("ops", "fused", "agreements", "runs", "repeats", "sanitizer"):
        for row in getattr(whole(), table):
            store.take(messages.Message("row", table, row))
    store.stage(GpuStage("probe", "passed", 5.0, "NVIDIA T"))
    store.finish()
    assert results.read(tmp_path / "gpu.json") == whole()


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path, dry=False)
    path = tmp_path / "gpu.json"
    assert not path.exists()
    start(store)
    assert results.read(path).ops == []
    rows = [op_result(row) for row in plan.op_rows()]
    for count, row in enumerate(rows[:3], start=1):
        store.take(messages.Message("row", "ops", row))
        assert results.read(path).ops == rows[:count]
        assert not results.read(path).finished
    # What JSON cannot hold is refused, and leaves the file as it was.
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.take(messages.Message("row", "ops", replace(rows[3], seconds=float("nan"))))
    assert results.read(path).ops == rows[:3]
    assert [item.name for item in tmp_path.iterdir()] == ["gpu.json"]


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_whole(path, "old")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"


def test_the_build_is_for_one_card() -> None:
    assert build.architecture((9, 0)) == "9.0a"
    assert build.architecture((8, 6)) == "8.6"
    variables = build.environment("cpu")
    assert variables["RAPKERNELS_CUDA"] == "0"
    assert variables["PATH"].startswith(str(Path(sys.executable).parent))


PTXAS = """
ptxas info    : Compiling entry function '_ZN10rapkernels4gateEPf' for 'sm_90a'
ptxas info    : Function properties for _ZN10rapkernels4gateEPf
    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 64 bytes smem
"""


def test_the_report_of_ptxas() -> None:
    short, full = build.resources(PTXAS)
    assert short == "1 kernels, at most 40 registers, 1 spill"
    assert "40" in full.splitlines()[-1]
    assert build.resources("nothing")[0] == "no CUDA kernels were compiled"
    assert "cannot be read" in build.resources(PTXAS.replace("Function", "Funktion"))[0]


def test_the_commit_of_a_copy_without_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPKERNELS_COMMIT", "abc-dirty")
    assert machine.commit_and_changes() == ("abc", True)
    monkeypatch.setenv("RAPKERNELS_COMMIT", "abc")
    assert machine.commit_and_changes() == ("abc", None)
    monkeypatch.delenv("RAPKERNELS_COMMIT")
    monkeypatch.setattr(machine, "_git", lambda *_: None)
    assert machine.commit_and_changes() == (None, None)


def test_readme_says_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = report.gpu_table(report.RESULTS / "gpu.json")
    assert f"{report.GPU_BEGIN}\n{table}\n{report.GPU_END}" in text


def test_the_report_command(tmp_path: Path) -> None:
    readme, gpu = tmp_path / "README.md", tmp_path / "gpu.json"
    blocks = f"{report.BEGIN}\n{report.END}\n\n{report.GPU_BEGIN}\n{report.GPU_END}\n"
    readme.write_text(blocks, encoding="utf-8")
    options = ["--readme", str(readme), "--gpu", str(gpu)]

    def call(*more: str) -> int:
        return CliRunner().invoke(report.main, [*options, *more]).exit_code

    assert call("--check") == 1
    assert call() == 0
    assert f"{report.GPU_BEGIN}\n{NOT_MEASURED}\n{report.GPU_END}" in readme.read_text()
    assert call("--check") == 0
    store = Store(tmp_path, dry=False)
    start(store)
    assert call("--check") == 1
    assert call() == 0
    assert "On one NVIDIA T" in readme.read_text()
    assert call("--check") == 0
    start(Store(tmp_path, dry=True))
    refused = CliRunner().invoke(report.main, options)
    assert refused.exit_code == 1
    assert "trial on the CPU" in refused.output


def shell(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, **variables}
    script = str(ROOT / "bench" / "gpu.sh")
    return subprocess.run([script, *words], env=environment, capture_output=True, text=True)


def test_the_script_says_what_it_wants(tmp_path: Path) -> None:
    assert shell().returncode == 2
    assert "usage: bench/gpu.sh OUTDIR" in shell().stderr
    done = shell(str(tmp_path), PYTHON="false")
    assert done.returncode == 2
    assert "set PYTHON to one that has both" in done.stderr


@pytest.mark.slow
def test_without_a_gpu_the_script_ends_at_once(tmp_path: Path) -> None:
    done = shell(str(tmp_path / "out"), RAPKERNELS_WHEELS=str(tmp_path))
    assert done.returncode == 2
    assert "no GPU is here: torch" in done.stdout or "has no CUDA" in done.stdout
    assert "no wheels in" in done.stderr
    assert "build" not in done.stdout
    assert not (tmp_path / "out" / "gpu.json").exists()
