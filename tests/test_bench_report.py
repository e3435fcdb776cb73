"""Result files and the README table made from them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import machine, schema
from bench.render import render_models, render_ops
from bench.report import BEGIN, END, FILES, insert, main
from bench.verdicts import (
    faster_verdict,
    further_target,
    limit_verdict,
    target_verdict,
    within_limits,
)

pytestmark = pytest.mark.cpu_only

MACHINE = schema.Machine("A CPU", 2, 2, 2, "AVX2", 8.0, "Linux x86_64")
PROVENANCE = schema.Provenance(
    "python -m bench.models",
    "2026-01-02T03:04:05+00:00",
    "0123456789abcdef",
    False,
    MACHINE,
    {"python": "3.11.0", "torch": "2.11.0"},
)


def _result(method: str, cost: float | None, error: str | None = None) -> schema.MethodResult:
    return schema.MethodResult(
        method=method,
        label=method,
        error=error,
        first_call_seconds=None if error else 2.0,
        seconds=cost,
        samples=[] if cost is None else [cost],
        cost=cost,
        finite=None if error else True,
        relevance_over_score=None,
        memory=None if error else schema.Memory(0.5, 0.45, "high-water mark"),
    )


def _models(cost: float = 3.5, batch: int = 4, provenance: Any = PROVENANCE) -> schema.ModelsFile:
    results = [
        _result("forward", 1.0),
        _result("rap", cost),
        _result("captum_lrp", None, "TypeError: no rule"),
    ]
    checks = [schema.Check("rap", 0.9999999, 1e-5, 1e-7, 2e-6)]
    shape, checked = [batch, 3, 224, 224], min(batch, 4)
    vgg = schema.ModelRun("vgg16", shape, provenance, 5, checked, 0.368, 0.01, checks, results)
    return schema.ModelsFile("models", schema.ModelsFile.CURRENT, [vgg])


def _ops() -> schema.OpsFile:
    result = schema.OpResult(
        "vgg16.fc6",
        "VGG-16",
        "relprop_linear",
        "4 x 25088",
        1e-6,
        0.05,
        0.4,
        8.0,
        9.0,
        0.9,
        30.0,
        0.15,
    )
    return schema.OpsFile("ops", schema.VERSION, PROVENANCE, 5, schema.Peaks(10.0, 200.0), [result])


@pytest.mark.parametrize("document", [_models(), _ops()], ids=["models", "ops"])
def test_a_file_is_read_as_it_was_written(document: schema.ResultsFile, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    schema.write(document, path)
    assert schema.read(path) == document


def _without_cost(data: dict[str, Any]) -> None:
    del data["runs"][0]["results"][1]["cost"]


def _text_cost(data: dict[str, Any]) -> None:
    data["runs"][0]["results"][1]["cost"] = "3.5"


def _true_cost(data: dict[str, Any]) -> None:
    data["runs"][0]["results"][1]["cost"] = True


def _unknown_kind(data: dict[str, Any]) -> None:
    data["kind"] = "pictures"


def _old_version(data: dict[str, Any]) -> None:
    data["version"] = 0


def _bad_memory(data: dict[str, Any]) -> None:
    data["runs"][0]["results"][0]["memory"]["how"] = "guessed"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_cost, r"results\[1\]: missing fields \['cost'\]"),
        (_text_cost, r"results\[1\].cost: must be a finite number, got '3.5'"),
        (_true_cost, r"results\[1\].cost: must be a finite number, got True"),
        (_unknown_kind, "kind must be 'models' or 'ops' or 'growth', got 'pictures'"),
        (_old_version, "version must be 2, got 0"),
        (_bad_memory, "memory.how: must be one of"),
    ],
)
def test_a_file_of_another_shape_is_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    data = dataclasses.asdict(_models())
    spoil(data)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(schema.SchemaError, match=message):
        schema.read(path)


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        schema.write(_models(cost=float("nan")), tmp_path / "result.json")


def test_the_table_says_what_was_measured() -> None:
    text = render_models(_models().runs) + render_ops(_ops())
    assert "|  | VGG-16, batch 4 |" in text
    assert "| forward (the unit) | 1 = 368 ms (0.50, 0.45 GB) |" in text
    assert "| **rapkernels RAP** | **3.5** (0.50, 0.45 GB) |" in text
    assert "on VGG-16, batch 4 does not run: `TypeError: no rule`" in text
    assert "cosine 0.9999999, largest error 1.0e-05" in text
    assert "Made by `python -m bench.models` on 2026-01-02, commit 0123456789," in text
    assert "A CPU (2 cores, 2 threads, AVX2, 8 GB); python 3.11.0, torch 2.11.0." in text
    assert "| vgg16.fc6 | `relprop_linear` | 4 x 25088 | 50.00 | 400.00 | 8.0 | 9.0 (90%) |" in text


@pytest.mark.parametrize(
    ("cost", "batch", "verdict"),
    [
        (3.5, 4, "VGG-16, batch 4: cost 3.50 within the limit of 3.7 forwards, peak memory 0.50"),
        (4.5, 4, "VGG-16, batch 4: cost 4.50 EXCEEDS the limit of 3.7 forwards"),
        (4.5, 1, "VGG-16, batch 1: cost 4.50 within the limit of 5.0 forwards."),
        (5.5, 16, ""),
    ],
)
def test_limits_apply_at_their_batch(cost: float, batch: int, verdict: str) -> None:
    text = limit_verdict(_models(cost, batch).runs[0])
    assert text.startswith(verdict)
    assert bool(text) == bool(verdict)


def test_a_limit_is_not_kept_by_a_method_that_does_not_run() -> None:
    run = _models().runs[0]
    broken = dataclasses.replace(run, results=[_result("rap", None, "RuntimeError: not built")])
    assert not within_limits(broken)


def _with_targets(cost: float | None, error: str | None = None, batch: int = 4) -> schema.ModelRun:
    run = _models(batch=batch).runs[0]
    return dataclasses.replace(run, results=[*run.results, _result("rap_targets", cost, error)])


@pytest.mark.parametrize(
    ("cost", "verdict"),
    [
        (3.5 + 4 * 1.89, "VGG-16, batch 4: cost 1.89 within the limit of 1.9 forwards."),
        (3.5 + 4 * 1.91, "VGG-16, batch 4: cost 1.91 EXCEEDS the limit of 1.9 forwards."),
    ],
)
def test_the_cost_of_a_further_target(cost: float, verdict: str) -> None:
    run = _with_targets(cost)
    assert target_verdict(run) == verdict
    assert within_limits(run) == ("EXCEEDS" not in verdict)
    text = render_models([run])
    assert f"RAP of each further target (5 targets less 1, over 4): {verdict}" in text


def test_the_limit_of_a_further_target_applies_where_it_was_measured() -> None:
    assert target_verdict(_models().runs[0]) == ""
    single = _with_targets(100.0, batch=1)
    assert further_target(single) == pytest.approx((100 - 3.5) / 4)
    assert target_verdict(single) == "VGG-16, batch 1: cost 24.12 forwards."
    assert f"over 4): {target_verdict(single)}" in render_models([single])
    broken = _with_targets(None, "RuntimeError: not built")
    assert "EXCEEDS" in target_verdict(broken)
    assert not within_limits(broken)


def test_the_other_methods_have_a_table_of_their_own() -> None:
    run = _models().runs[0]
    results = [
        *run.results,
        _result("zennit_epsilon_plus_flat", 6.0),
        _result("lrp_epsilon_plus_flat", 4.0),
        _result("sharing_ratio", 2.5),
    ]
    checks = [*run.checks, schema.Check("sharing_ratio", 0.9999, 2e-2, 1e-7, 2e-6)]
    further = dataclasses.replace(run, results=results, checks=checks)
    text = render_models([further])
    first, second = text.split("The other methods of this library")
    assert "| zennit EpsilonPlusFlat | 6.0 (0.50, 0.45 GB) |" in first
    assert "largest error 1.0e-05 of the largest entry, worst" in first
    assert "Sharing Ratio" not in first
    assert "| rapkernels LRP EpsilonPlusFlat | 4.0 (0.50, 0.45 GB) |" in second
    assert "| rapkernels Sharing Ratio | 2.5 (0.50, 0.45 GB) |" in second
    assert "VGG-16, batch 4: zennit EpsilonPlusFlat costs 1.5 times what ours costs." in second
    assert "largest error 2.0e-02 of the largest entry (rapkernels Sharing Ratio)" in second
    # A file from before these methods has one table.
    assert "other methods" not in render_models(_models().runs)


def test_the_committed_results_are_readable() -> None:
    models, ops = (schema.read(path) for path in FILES[:2])
    assert isinstance(models, schema.ModelsFile)
    assert isinstance(ops, schema.OpsFile)
    assert "| **rapkernels RAP** |" in render_models(models.runs)
    assert "`relprop_conv`" in render_ops(ops)


def test_an_unsteady_run_says_so() -> None:
    busy = dataclasses.replace(_models().runs[0], forward_spread=0.4)
    assert "the unit varied by 40% over the rounds" in render_models([busy])
    assert within_limits(_models().runs[0])
    assert not within_limits(busy)


def test_the_table_replaces_the_old_one() -> None:
    old = f"# Title\n\n{BEGIN}\nold\n{END}\n\nmore\n"
    assert insert(old, "new") == f"# Title\n\n{BEGIN}\nnew\n{END}\n\nmore\n"
    for text in ("nothing", f"{BEGIN} only", f"{BEGIN}{BEGIN}{END}", f"{END}{BEGIN}"):
        with pytest.raises(ValueError, match="bench:"):
            insert(text, "new")


def _speed_page(folder: Path) -> Path:
    page = folder / "speed.md"
    kinds = ("models", "ops", "growth")
    markers = [f"<!-- {kind}:begin -->\n<!-- {kind}:end -->\n" for kind in kinds]
    page.write_text("\n".join(markers), encoding="utf-8")
    return page


def test_the_report_command(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "models.json"
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    speed = _speed_page(tmp_path)
    other, (vgg,) = _models(batch=16).runs[0], _models().runs
    schema.write(dataclasses.replace(_models(), runs=[vgg, other]), results)
    nowhere = ["--results", str(tmp_path / "none"), "--docs", str(tmp_path)]
    arguments = ["--readme", str(readme), *nowhere, str(results)]
    stale = CliRunner().invoke(main, ["--check", *arguments])
    assert stale.exit_code == 1
    assert "run python -m bench.report" in stale.output
    assert CliRunner().invoke(main, arguments).exit_code == 0
    text = readme.read_text(encoding="utf-8")
    assert "| **rapkernels RAP** |" in text
    # README has batch 4 alone.
    assert "batch 16" not in text
    for batch in (4, 16):
        assert f"### Batch {batch}\n" in speed.read_text(encoding="utf-8")
    assert "on 4 of 16 samples" in speed.read_text(encoding="utf-8")
    assert CliRunner().invoke(main, ["--check", *arguments]).exit_code == 0
    absent = ["--readme", str(readme), *nowhere, str(tmp_path / "no.json")]
    missing = CliRunner().invoke(main, absent)
    assert missing.exit_code == 1
    assert "no.json" in missing.output


def test_tables_of_evaluations(tmp_path: Path) -> None:
    names = ("README.md", "evaluation.md", "models.json")
    readme, doc, results = (tmp_path / name for name in names)
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    _speed_page(tmp_path)
    doc.write_text("# Page\n\n<!-- digits:begin -->\n<!-- digits:end -->\n", encoding="utf-8")
    schema.write(_models(), results)
    csv = tmp_path / "evaluation" / "digits.csv"
    csv.parent.mkdir()
    csv.write_text(
        "method,control,images,gini,gini_se,layer,layer_se,seconds,seconds_se\n"
        "rap,0,9,0.5,0.125,0.25,,1.0,\n"
        "disc,1,9,,,1.0,0.0,2.0,\n",
        encoding="utf-8",
    )
    folder = str(tmp_path)
    arguments = ["--readme", str(readme), "--results", folder, "--docs", folder, str(results)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert doc.read_text(encoding="utf-8").splitlines()[3:7] == [
        "| 9 images | Gini | `layer` |",
        "| --- | --- | --- |",
        "| RAP | 0.500 ± 0.12 | 0.250 |",
        "| *centred disc* | - | 1.000 ± 0.00 |",
    ]
    assert CliRunner().invoke(main, ["--check", *arguments]).exit_code == 0
    csv.write_text(csv.read_text(encoding="utf-8").replace("rap,", "rip,"), encoding="utf-8")
    unknown = CliRunner().invoke(main, arguments)
    assert unknown.exit_code == 1
    assert "the method rip, which is not known" in unknown.output


FASTER = [
    ({"rap": 3.0, "zennit_epsilon_plus_flat": 6.0}, "2.0 (zennit EpsilonPlusFlat)", True),
    ({"rap": 3.0, "rap_reference": 2.9}, "1.0 (rapkernels RAP, reference backend; ours EXC", False),
    ({"rap": None, "rap_reference": 2.9}, "rapkernels RAP EXCEEDS all others", False),
    ({"rap": 3.0, "rap_reference": None}, "", True),
    ({"rap": 3.0, "lrp_epsilon": 2.0, "autolrp": 1.0}, "0.5 (autoLRP (epsilon; one", False),
    ({"rap": 3.0, "lrp_epsilon": 2.0, "captum_lrp": 3.0, "autolrp": None}, "1.5 (captum LRP", True),
]


@pytest.mark.parametrize(("costs", "text", "kept"), FASTER)
def test_ours_must_be_faster(costs: dict[str, float | None], text: str, kept: bool) -> None:
    results = [_result(name, cost, None if cost else "E: no") for name, cost in costs.items()]
    run = dataclasses.replace(_models(batch=16).runs[0], results=results)
    verdict = faster_verdict(run)
    assert text in verdict
    assert bool(verdict) == bool(text)
    assert within_limits(run) == kept


def test_limits_in_bfloat16() -> None:
    run = _models().runs[0]
    results = [*run.results, _result("rap_bf16", 2.5), _result("rap_bf16_targets", 2.5 + 4 * 1.3)]
    measured = dataclasses.replace(run, results=results)
    assert "bf16 cost 2.50 within the limit of 2.6 forwards" in limit_verdict(measured)
    assert "bf16 cost 1.30 EXCEEDS the limit of 1.2 forwards" in target_verdict(measured)
    assert not within_limits(measured)


def test_runs_of_several_commands() -> None:
    later = dataclasses.replace(PROVENANCE, date="2026-02-03T00:00:00+00:00")
    runs = [_models().runs[0], _models(provenance=later).runs[0]]
    assert render_models([runs[0], runs[0]]).count("ade by `python") == 1
    text = render_models(runs)
    assert "VGG-16: made by `python -m bench.models` on 2026-01-02" in text
    assert "VGG-16: made by `python -m bench.models` on 2026-02-03" in text
    assert "\n\nVGG-16: made by `python -m bench.models` on 2026-01-02" in render_models(
        [*runs, runs[0]]
    )


def test_the_tables_of_this_repository_are_current() -> None:
    result = CliRunner().invoke(main, ["--check"])
    assert result.exit_code == 0, result.output


def test_commands_name_the_settings_that_time_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"MALLOC_TRIM_THRESHOLD_": "1", "OMP_WAIT_POLICY": "passive", "HOME": "/root"}
    monkeypatch.setattr(os, "environ", settings)
    command = machine.command_line("bench.growth", ["--model", "tiny"])
    assert command == (
        "MALLOC_TRIM_THRESHOLD_=1 OMP_WAIT_POLICY=passive python -m bench.growth --model tiny"
    )


def test_provenance_holds_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    command = machine.command_line("bench.models", ["-o", str(machine.ROOT / "x.json")])
    assert command == "python -m bench.models -o x.json"
    found = machine.provenance(command)
    assert found.machine.torch_threads >= 1
    assert found.versions["torch"]
    assert str(machine.ROOT) not in json.dumps(dataclasses.asdict(found))
    assert machine.one_line(OSError(f"{machine.ROOT}/a\n b")) == "OSError: <repo>/a b"
