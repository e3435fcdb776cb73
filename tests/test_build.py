"""Which build setup.py chooses, with toolkits that are shell scripts: no nvcc is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

import setup_cuda
from setup_cuda import Toolkit

pytestmark = pytest.mark.cpu_only


def make_toolkit(home: Path, release: str = "13.0", listed: str = "80 90 100 120") -> Path:
    """A folder that looks like a toolkit; its nvcc answers what it is asked."""
    (home / "include").mkdir(parents=True)
    (home / "include" / "cuda_runtime.h").touch()
    targets = "\\n".join(f"compute_{number}" for number in listed.split())
    make_program(
        home / "bin" / "nvcc",
        f"""case "$1" in
        --version) echo "Cuda compilation tools, release {release}, V{release}.88";;
        --list-gpu-arch) printf '{targets}\\n';;
        --dryrun) echo '#$ TOP={home}/bin/..' >&2;;
        esac""",
    )
    return home


def make_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    return make_toolkit(tmp_path / "toolkit")


@pytest.fixture
def environ(toolkit: Path) -> dict[str, str]:
    """The environment of a machine with that toolkit and no other."""
    return {"CUDA_HOME": str(toolkit), "PATH": ""}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a toolkit in the usual place."""
    monkeypatch.setattr(setup_cuda, "USUAL_HOME", tmp_path / "nowhere")


@pytest.mark.parametrize("switch", [{}, {"RAPKERNELS_CUDA": "auto"}, {"RAPKERNELS_CUDA": "1"}])
def test_cuda_is_built_where_it_can_be(
    environ: dict[str, str], toolkit: Path, switch: dict[str, str]
) -> None:
    assert setup_cuda.choose({**environ, **switch}, "13.0") == Toolkit(toolkit, "13.0")


def test_0_leaves_cuda_out(environ: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    assert setup_cuda.choose({**environ, "RAPKERNELS_CUDA": "0"}, "13.0") is None
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("changed", "torch_cuda", "reason"),
    [
        ({}, None, "this torch has no CUDA"),
        ({"CUDA_HOME": "/no/such/folder"}, "13.0", "set CUDA_HOME to the folder with bin/nvcc"),
        ({"CUDA_HOME": ""}, "13.0", "no CUDA toolkit was found"),
        ({}, "12.8", "torch has CUDA 12.8, the toolkit in .* is 13.0; set CUDA_HOME"),
    ],
)
def test_what_is_missing_is_said(
    environ: dict[str, str],
    changed: dict[str, str],
    torch_cuda: str | None,
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    environ |= changed
    assert setup_cuda.choose(environ, torch_cuda) is None
    said = capfd.readouterr().err
    assert said.startswith("rapkernels is built without CUDA kernels: ")
    assert said.count("\n") == 1
    with pytest.raises(SystemExit, match=reason):
        setup_cuda.choose({**environ, "RAPKERNELS_CUDA": "1"}, torch_cuda)


def test_another_minor_release_will_do(environ: dict[str, str]) -> None:
    assert setup_cuda.choose(environ, "13.2") is not None


def test_a_switch_has_its_values(environ: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match="RAPKERNELS_CUDA must be one of auto, 0, 1, got 'on'"):
        setup_cuda.choose({**environ, "RAPKERNELS_CUDA": "on"}, "13.0")
    with pytest.raises(SystemExit, match="RAPKERNELS_STRICT must be one of 0, 1, got 'yes'"):
        setup_cuda.nvcc_flags(["8.0"], {"RAPKERNELS_STRICT": "yes"})


@pytest.mark.usefixtures("bare")
def test_nvcc_on_path_may_stand_outside_its_toolkit(toolkit: Path, tmp_path: Path) -> None:
    make_program(tmp_path / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    environ = {"PATH": str(tmp_path / "bin")}
    assert setup_cuda.find_toolkit(environ).home == toolkit


@pytest.mark.usefixtures("bare")
def test_the_toolkit_may_stand_beside_nvcc(tmp_path: Path) -> None:
    home = make_toolkit(tmp_path / "cuda")
    make_program(tmp_path / "bin" / "nvcc", "exit 1")
    assert setup_cuda.find_toolkit({"PATH": str(tmp_path / "bin")}).home == home


def test_a_home_without_headers_is_passed_over(toolkit: Path, tmp_path: Path) -> None:
    make_program(tmp_path / "empty" / "bin" / "nvcc", "exit 1")
    environ = {"CUDA_HOME": str(tmp_path / "empty"), "PATH": str(toolkit / "bin")}
    assert setup_cuda.find_toolkit(environ).home == toolkit


def test_an_nvcc_that_does_not_run_is_no_toolkit(
    environ: dict[str, str], toolkit: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_program(toolkit / "bin" / "nvcc", "exit 1")
    assert setup_cuda.choose(environ, "13.0") is None
    assert "names no release" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("listed", "architectures"),
    [
        ("75 80 90 120 121", ("8.0", "9.0", "12.0+PTX")),
        ("50 80 90", ("8.0", "9.0+PTX")),
        ("", ("8.0", "9.0", "12.0+PTX")),
    ],
)
def test_default_architectures_are_those_that_nvcc_has(
    tmp_path: Path, listed: str, architectures: tuple[str, ...]
) -> None:
    home = make_toolkit(tmp_path / "toolkit", listed=listed)
    assert setup_cuda.architectures({}, home / "bin" / "nvcc") == architectures


@pytest.mark.parametrize(
    "text", ["8.0;9.0a;12.0+PTX", "8.0 9.0a 12.0+PTX", "8.0;9.0a;8.0;12.0+PTX;"]
)
def test_chosen_architectures(toolkit: Path, text: str) -> None:
    chosen = setup_cuda.architectures({"TORCH_CUDA_ARCH_LIST": text}, toolkit / "bin" / "nvcc")
    assert chosen == ("8.0", "9.0a", "12.0+PTX")
    assert setup_cuda.gencode(chosen) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_architectures_are_numbers(toolkit: Path) -> None:
    environ = {"TORCH_CUDA_ARCH_LIST": "8.0;Hopper"}
    with pytest.raises(SystemExit, match=r"numbers such as .*, got 'Hopper'"):
        setup_cuda.architectures(environ, toolkit / "bin" / "nvcc")


def test_flags() -> None:
    usual = setup_cuda.nvcc_flags(["8.0"], {})
    assert not any("fast_math" in flag or "Werror" in flag or "ptxas" in flag for flag in usual)
    strict = setup_cuda.nvcc_flags(["8.0"], {"RAPKERNELS_STRICT": "1", "RAPKERNELS_PTXAS": "1"})
    added = {"-Werror=all-warnings", "-Xcompiler=-Werror", "-Xptxas=-v"}
    assert set(strict) - set(usual) == added
