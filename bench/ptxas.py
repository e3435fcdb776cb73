"""What each CUDA kernel takes of the chip, as ptxas tells it: needs nvcc, no GPU.

python -m bench.ptxas                             # every csrc/cuda/*.cu
python -m bench.ptxas --arch 9.0a --no-spills csrc/cuda/linear.cu
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import click

import setup_cuda
from bench.machine import ROOT

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_FUNCTION = re.compile(r"Function properties for (\S+)")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
# What every kernel's name has in common.
_NOISE = re.compile(r"^void |\(anonymous namespace\)::|rapkernels::(?:cuda::)?|c10::| (?=>)")


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture: registers of a thread, bytes of everything else.

    A function that was not inlined has a row of its own, with registers None: they are counted
    with the kernel that calls it.
    """

    kernel: str
    architecture: str
    registers: int | None
    shared: int
    stack: int
    spills: int


def parse(output: str) -> list[Usage]:
    """The rows of what ``nvcc -Xptxas=-v`` printed, in its order."""
    rows: dict[tuple[str, str], Usage] = {}
    kernel = function = architecture = ""
    for line in output.splitlines():
        if found := _ENTRY.search(line):
            kernel, architecture = found.groups()
        elif found := _FUNCTION.search(line):
            function = found[1]
        elif found := _MEMORY.search(line):
            stack, stores, loads = map(int, found.groups())
            row = Usage(function, architecture, None, 0, stack, stores + loads)
            rows[function, architecture] = row
        elif found := _USED.search(line):
            shared = _SHARED.search(line)
            rows[kernel, architecture] = replace(
                rows[kernel, architecture],
                registers=int(found[1]),
                shared=int(shared[1]) if shared else 0,
            )
    return list(rows.values())


def readable(name: str) -> str:
    """A demangled name without return type, namespaces of this library and parameters."""
    depth = 0
    for position in range(len(name) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(name[position], 0)
        if depth == 0:
            # Only a parameter list stands at the end and in parentheses.
            name = name[:position] if name.endswith(")") else name
            break
    return _NOISE.sub("", name)


def table(rows: Iterable[Usage]) -> str:
    """One table for each architecture."""
    # Files that share a header have kernels in common.
    ordered = sorted(
        dict.fromkeys(rows),
        key=lambda row: (_number(row.architecture), row.architecture, row.kernel),
    )
    width = max((len(row.kernel) for row in ordered), default=0)
    lines: list[str] = []
    architecture = ""
    for row in ordered:
        if row.architecture != architecture:
            architecture = row.architecture
            lines += [""] if lines else []
            lines.append(f"{architecture:<{width}}  registers  shared  stack  spills")
        registers = "-" if row.registers is None else row.registers
        lines.append(
            f"{row.kernel:<{width}}  {registers:>9}  {row.shared:>6}  {row.stack:>5}  "
            f"{row.spills:>6}"
        )
    return "\n".join(lines)


def _number(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture) or 0)


def demangled(rows: Sequence[Usage]) -> list[Usage]:
    """The rows with readable names, where c++filt is there."""
    tool = shutil.which("c++filt")
    if tool is None or not rows:
        return list(rows)
    text = "\n".join(row.kernel for row in rows)
    done = subprocess.run([tool], input=text, stdout=subprocess.PIPE, text=True, check=True)
    names = done.stdout.splitlines()
    return [replace(row, kernel=readable(name)) for row, name in zip(rows, names, strict=True)]


def _compile(nvcc: Path, flags: Sequence[str], source: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(nvcc), *flags, "-c", str(source), "-o", str(Path(folder) / "kernel.o")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        raise click.ClickException(f"{source} does not compile:\n{done.stdout}")
    return done.stdout


def _flags(nvcc: Path, architectures: str | None) -> list[str]:
    environ = {**os.environ, "RAPKERNELS_PTXAS": "1"}
    if architectures:
        environ["TORCH_CUDA_ARCH_LIST"] = architectures
    flags = setup_cuda.nvcc_flags(setup_cuda.architectures(environ, nvcc), environ)
    # torch's number types are headers only; torch itself need not be importable.
    torch = importlib.util.find_spec("torch")
    for place in (torch.submodule_search_locations or []) if torch else []:
        flags += ["-isystem", str(Path(place) / "include")]
    return [*flags, "--expt-relaxed-constexpr", "-DRAPKERNELS_WITH_CUDA"]


@click.command(help="Print registers, shared memory, stack and spills of the kernels in FILES.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--arch", default=None, help="Such as '8.0;9.0a'. Default: those of the build.")
@click.option("--no-spills", is_flag=True, help="Fail where a kernel spills registers.")
def main(files: tuple[Path, ...], arch: str | None, no_spills: bool) -> None:
    """Compile and print; the text for users is the command's help."""
    try:
        nvcc = setup_cuda.find_toolkit(os.environ).nvcc
    except setup_cuda.NoCudaError as error:
        raise click.ClickException(str(error)) from error
    flags = _flags(nvcc, arch)
    sources = files or tuple(sorted((ROOT / "csrc" / "cuda").glob("*.cu")))
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "1"))) as pool:
        outputs = pool.map(lambda source: _compile(nvcc, flags, source), sources)
        rows = demangled([row for output in outputs for row in parse(output)])
    click.echo(table(rows))
    spilling = sorted({row.kernel for row in rows if row.spills})
    if no_spills and spilling:
        raise click.ClickException(f"registers are spilled in {', '.join(spilling)}")


if __name__ == "__main__":
    main()
