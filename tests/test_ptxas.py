"""The reader of ptxas reports."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import setup_cuda
from bench import ptxas
from bench.ptxas import Usage

pytestmark = pytest.mark.cpu_only

# As nvcc 13.0 prints it: a kernel with shared memory, one that spills, one that calls a function.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4gatePf' for 'sm_80'
ptxas info    : Function properties for _Z4gatePf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 512 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 2.312 ms
ptxas info    : Compiling entry function '_Z5widerPf' for 'sm_80'
ptxas info    : Function properties for _Z5widerPf
    2296 bytes stack frame, 2268 bytes spill stores, 2892 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 2296 bytes cumulative stack size
ptxas info    : Compile time = 36.272 ms
ptxas info    : Function properties for _Z6calledPf
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4gatePf' for 'sm_120'
ptxas info    : Function properties for _Z4gatePf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 512 bytes smem
"""
ROWS = [
    Usage("_Z4gatePf", "sm_80", 10, 512, 0, 0),
    Usage("_Z5widerPf", "sm_80", 32, 0, 2296, 5160),
    Usage("_Z6calledPf", "sm_80", None, 0, 8, 0),
    Usage("_Z4gatePf", "sm_120", 12, 512, 0, 0),
]


def test_parse() -> None:
    assert ptxas.parse(REPORT) == ROWS
    assert ptxas.parse("") == []


def test_one_table_for_each_architecture() -> None:
    printed = [line.split() for line in ptxas.table([*ROWS, ROWS[0]]).splitlines()]
    assert printed == [
        ["sm_80", "registers", "shared", "stack", "spills"],
        ["_Z4gatePf", "10", "512", "0", "0"],
        ["_Z5widerPf", "32", "0", "2296", "5160"],
        ["_Z6calledPf", "-", "0", "8", "0"],
        [],
        ["sm_120", "registers", "shared", "stack", "spills"],
        ["_Z4gatePf", "12", "512", "0", "0"],
    ]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("kernel(float*, int)", "kernel"),
        ("kernel", "kernel"),
        (
            "void rapkernels::cuda::(anonymous namespace)::gate<c10::Half, (rapkernels::Gate)1>"
            "(c10::Half const*, void (*)(int))",
            "gate<Half, (Gate)1>",
        ),
        (
            "void rapkernels::cuda::elementwise<4, rapkernels::cuda::Body<float> >(float*)",
            "elementwise<4, Body<float>>",
        ),
    ],
)
def test_readable_names(name: str, short: str) -> None:
    assert ptxas.readable(name) == short


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit whose nvcc prints the report above, whatever it is asked."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvcc"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{REPORT}END\n", encoding="utf-8")
    program.chmod(0o755)
    found = setup_cuda.Toolkit(tmp_path, "13.0")
    monkeypatch.setattr(setup_cuda, "find_toolkit", lambda _: found)
    monkeypatch.setattr(shutil, "which", lambda _: None)  # without c++filt
    return program


def test_the_command_fails_on_spills_where_asked(nvcc: Path, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.touch()
    arguments = ["--arch", "8.0;12.0", str(source)]
    usual = CliRunner().invoke(ptxas.main, arguments)
    assert usual.exit_code == 0, usual.output
    assert usual.stdout == ptxas.table(ROWS) + "\n"
    strict = CliRunner().invoke(ptxas.main, ["--no-spills", *arguments])
    assert strict.exit_code == 1
    assert strict.stdout == usual.stdout
    assert "registers are spilled in _Z5widerPf" in strict.stderr

    nvcc.write_text("#!/bin/sh\necho 'error: expected a semicolon'\nexit 2\n", encoding="utf-8")
    broken = CliRunner().invoke(ptxas.main, arguments)
    assert broken.exit_code == 1
    assert "kernel.cu does not compile:\nerror: expected a semicolon" in broken.stderr


def test_a_missing_toolkit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> setup_cuda.Toolkit:
        raise setup_cuda.NoCudaError("no CUDA toolkit was found")

    monkeypatch.setattr(setup_cuda, "find_toolkit", missing)
    assert "no CUDA toolkit was found" in CliRunner().invoke(ptxas.main, []).stderr
