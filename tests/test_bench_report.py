"""Result files and the README table made from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import machine, schema
from bench.render import further_target, limit_verdict, render, target_verdict, within_limits
from bench.report import BEGIN, END, FILES, insert, main

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
        memory=None if error else schema.Memory(0.9, 0.75, "high-water mark"),
    )


def _models(cost: float = 4.5, batch: int = 4) -> schema.ModelsFile:
    results = [
        _result("forward", 1.0),
        _result("rap", cost),
        _result("captum_lrp", None, "TypeError: no rule"),
    ]
    checks = [schema.Check("rap", 0.9999999, 1e-5, 1e-7, 2e-6)]
    vgg = schema.ModelRun("vgg16", [batch, 3, 224, 224], 5, 0.368, 0.01, checks, results)
    return schema.ModelsFile("models", schema.VERSION, PROVENANCE, [vgg])


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
    data["runs"][0]["results"][1]["cost"] = "4.5"


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
        (_text_cost, r"results\[1\].cost: must be a finite number, got '4.5'"),
        (_true_cost, r"results\[1\].cost: must be a finite number, got True"),
        (_unknown_kind, "kind must be 'models' or 'ops', got 'pictures'"),
        (_old_version, "version must be 1, got 0"),
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
    text = render([_models(), _ops()])
    assert "|  | VGG-16, batch 4 |" in text
    assert "| forward (the unit) | 1 = 368 ms (0.90, 0.75 GB) |" in text
    assert "| **rapkernels RAP** | **4.5** (0.90, 0.75 GB) |" in text
    assert "on VGG-16 does not run: `TypeError: no rule`" in text
    assert "cosine 0.9999999, largest error 1.0e-05" in text
    assert "Made by `python -m bench.models` on 2026-01-02, commit 0123456789," in text
    assert "A CPU (2 cores, 2 threads, AVX2, 8 GB); python 3.11.0, torch 2.11.0." in text
    assert "| vgg16.fc6 | `relprop_linear` | 4 x 25088 | 50.00 | 400.00 | 8.0 | 9.0 (90%) |" in text


@pytest.mark.parametrize(
    ("cost", "batch", "verdict"),
    [
        (4.5, 4, "VGG-16: cost 4.50 within the limit of 5.0 forwards, peak memory 0.90 within"),
        (5.5, 4, "VGG-16: cost 5.50 EXCEEDS the limit of 5.0 forwards"),
        (5.5, 1, ""),
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
        (4.5 + 4 * 2.59, "VGG-16: cost 2.59 within the limit of 2.6 forwards."),
        (4.5 + 4 * 2.61, "VGG-16: cost 2.61 EXCEEDS the limit of 2.6 forwards."),
    ],
)
def test_the_cost_of_a_further_target(cost: float, verdict: str) -> None:
    run = _with_targets(cost)
    assert target_verdict(run) == verdict
    assert within_limits(run) == ("EXCEEDS" not in verdict)
    text = render([dataclasses.replace(_models(), runs=[run])])
    assert f"RAP of each further target (5 targets less 1, over 4): {verdict}" in text


def test_the_limit_of_a_further_target_applies_where_it_was_measured() -> None:
    assert target_verdict(_models().runs[0]) == ""
    single = _with_targets(100.0, batch=1)
    assert target_verdict(single) == ""
    assert further_target(single) == pytest.approx((100 - 4.5) / 4)
    assert "over 4): VGG-16: cost 23.88 forwards." in render(
        [dataclasses.replace(_models(), runs=[single])]
    )
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
    text = render([dataclasses.replace(_models(), runs=[further])])
    first, second = text.split("The other methods of this library")
    assert "| zennit EpsilonPlusFlat | 6.0 (0.90, 0.75 GB) |" in first
    assert "largest error 1.0e-05 of the largest entry, worst" in first
    assert "Sharing Ratio" not in first
    assert "| rapkernels LRP EpsilonPlusFlat | 4.0 (0.90, 0.75 GB) |" in second
    assert "| rapkernels Sharing Ratio | 2.5 (0.90, 0.75 GB) |" in second
    assert "VGG-16: zennit EpsilonPlusFlat costs 1.5 times what ours costs." in second
    assert "largest error 2.0e-02 of the largest entry (rapkernels Sharing Ratio)" in second
    # A file from before these methods has one table.
    assert "other methods" not in render([_models()])


def test_the_committed_results_are_readable() -> None:
    assert "| **rapkernels RAP** |" in render([schema.read(path) for path in FILES])


def test_an_unsteady_run_says_so() -> None:
    busy = dataclasses.replace(_models().runs[0], forward_spread=0.4)
    document = dataclasses.replace(_models(), runs=[busy])
    assert "the unit varied by 40% over the rounds" in render([document])
    assert within_limits(_models().runs[0])
    assert not within_limits(busy)


def test_the_table_replaces_the_old_one() -> None:
    old = f"# Title\n\n{BEGIN}\nold\n{END}\n\nmore\n"
    assert insert(old, "new") == f"# Title\n\n{BEGIN}\nnew\n{END}\n\nmore\n"
    for text in ("nothing", f"{BEGIN} only", f"{BEGIN}{BEGIN}{END}", f"{END}{BEGIN}"):
        with pytest.raises(ValueError, match="bench:"):
            insert(text, "new")


def test_the_report_command(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "models.json"
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    schema.write(_models(), results)
    nowhere = ["--results", str(tmp_path / "none")]
    arguments = ["--readme", str(readme), *nowhere, str(results)]
    stale = CliRunner().invoke(main, ["--check", *arguments])
    assert stale.exit_code == 1
    assert "run python -m bench.report" in stale.output
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert "rapkernels RAP" in readme.read_text(encoding="utf-8")
    assert CliRunner().invoke(main, ["--check", *arguments]).exit_code == 0
    absent = ["--readme", str(readme), *nowhere, str(tmp_path / "no.json")]
    missing = CliRunner().invoke(main, absent)
    assert missing.exit_code == 1
    assert "no.json" in missing.output


def test_tables_of_evaluations(tmp_path: Path) -> None:
    names = ("README.md", "evaluation.md", "models.json")
    readme, doc, results = (tmp_path / name for name in names)
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
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


def test_the_tables_of_this_repository_are_current() -> None:
    result = CliRunner().invoke(main, ["--check"])
    assert result.exit_code == 0, result.output


def test_provenance_holds_no_path() -> None:
    command = machine.command_line("bench.models", ["-o", str(machine.ROOT / "x.json")])
    assert command == "python -m bench.models -o x.json"
    found = machine.provenance(command)
    assert found.machine.torch_threads >= 1
    assert found.versions["torch"]
    assert str(machine.ROOT) not in json.dumps(dataclasses.asdict(found))
    assert machine.one_line(OSError(f"{machine.ROOT}/a\n b")) == "OSError: <repo>/a b"
