"""Builds the extension in place, for the present GPU only, and keeps what ptxas says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from bench.gpu.messages import CUT_OFF, Reporter
from bench.gpu.settings import stage_options
from bench.machine import ROOT
from bench.ptxas import Usage, demangled, parse, table

# Capabilities whose newest instructions need the architecture's own target.
SPECIFIC = {(9, 0)}


def architecture(capability: tuple[int, int]) -> str:
    """TORCH_CUDA_ARCH_LIST for one card, as in 9.0a."""
    major, minor = capability
    return f"{major}.{minor}{'a' if capability in SPECIFIC else ''}"


def environment(device: str) -> dict[str, str]:
    """The variables that the build reads."""
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    # torch looks for ninja on PATH, and without it compiles one file after the other.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables = {**os.environ, "MAX_JOBS": jobs, "PATH": path}
    if device == "cpu":
        return {**variables, "RAPKERNELS_CUDA": "0"}
    arch = architecture(torch.cuda.get_device_capability(0))
    chosen = {"RAPKERNELS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch, "RAPKERNELS_PTXAS": "1"}
    return variables | chosen


def summary(kernels: Sequence[Usage]) -> str:
    """One line on all kernels."""
    if not kernels:
        return "no CUDA kernels were compiled"
    spilling = sum(kernel.spills > 0 for kernel in kernels)
    most = max(kernel.registers or 0 for kernel in kernels)
    return f"{len(kernels)} kernels, at most {most} registers, {spilling} spill"


def resources(log: str) -> tuple[str, str]:
    """What ptxas says in the build's output, in one line and in full."""
    try:
        kernels = parse(log)
    except (KeyError, ValueError) as error:
        return f"ptxas's report cannot be read ({type(error).__name__})", log
    return summary(kernels), f"{summary(kernels)}\n\n{table(demangled(kernels))}\n"


def loaded(device: str) -> str:
    """What the new extension says of itself, in a process of its own; raises ClickException."""
    script = "import rapkernels; print(rapkernels.build_info())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    wanted = ["'extension': True"] + (["'cuda': True"] if device == "cuda" else [])
    if done.returncode != 0 or not all(text in done.stdout for text in wanted):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise click.ClickException(f"the extension was built but does not load: {''.join(last)}")
    return done.stdout.strip()


@click.command(help="Build the extension in place for the present GPU.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build"))
@stage_options
def main(
    out: Path, device: str, tiny: bool, seconds: float, marked: bool, done: tuple[str, ...]
) -> None:
    """Run the stage; the text for users is the command's help."""
    del tiny
    reporter = Reporter(marked, frozenset(done))
    variables = environment(device)
    reporter.say(
        f"setup.py build_ext --inplace, {variables['MAX_JOBS']} jobs, architecture "
        f"{variables.get('TORCH_CUDA_ARCH_LIST', 'none')}"
    )
    out.mkdir(parents=True, exist_ok=True)
    log = out / "build.txt"
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        built = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            status = built.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            built.kill()
            reporter.detail("out of time")
            raise SystemExit(CUT_OFF) from None
    text = log.read_text(encoding="utf-8", errors="replace")
    if status != 0:
        faults = [line for line in text.splitlines() if "error" in line.lower()]
        for line in (faults or text.splitlines())[:20]:
            reporter.say(line[:300])
        raise click.ClickException(f"the build failed with status {status}: see build.txt")
    reporter.say(loaded(device))
    short, full = resources(text)
    (out / "ptxas.txt").write_text(full, encoding="utf-8")
    reporter.detail(short)


if __name__ == "__main__":
    main()
