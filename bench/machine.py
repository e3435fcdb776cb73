"""Machine, versions and commit of a run."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.schema import Machine, Provenance

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rapkernels", "torch", "torchvision", "numpy", "zennit", "captum", "autoLRP")


def provenance(command: str) -> Provenance:
    """Everything a reader needs to judge and repeat a run started with `command`."""
    commit, dirty = commit_and_changes()
    return Provenance(
        command=command,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=commit,
        dirty=dirty,
        machine=machine(),
        versions=versions(),
    )


def commit_and_changes() -> tuple[str | None, bool | None]:
    """The commit and whether files differ from it, results aside; None where that is not known.

    In a copy of the tree without its history, RAPKERNELS_COMMIT tells both, as
    ``git describe --always --dirty --abbrev=40 --exclude='*'`` prints it.
    """
    told = os.environ.get("RAPKERNELS_COMMIT", "").strip()
    if told:
        return told.removesuffix("-dirty"), True if told.endswith("-dirty") else None
    status = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)bench/results"
    )
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


# How malloc keeps memory, and how threads wait.
_SETS_TIME = re.compile(r"MALLOC_|GLIBC_TUNABLES$|THP_MEM_ALLOC_ENABLE$|OMP_|KMP_|MKL_").match


def command_line(module: str, arguments: Sequence[str]) -> str:
    """The command to repeat a run, with the variables of its environment that time depends on.

    Of an absolute path only the file's name is kept.
    """
    kept = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    settings = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if _SETS_TIME(name)]
    return " ".join([*settings, shlex.join(["python", "-m", module, *kept])])


def machine() -> Machine:
    """The processor and the threads in use; neither host name nor path."""
    fields = _cpuinfo()
    sockets = {(block.get("physical id"), block.get("core id")) for block in fields}
    logical = os.cpu_count() or 1
    return Machine(
        cpu=fields[0].get("model name", platform.machine()) if fields else platform.machine(),
        physical_cores=len(sockets) if fields and (None, None) not in sockets else logical,
        logical_cpus=logical,
        torch_threads=torch.get_num_threads(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        system=f"{platform.system()} {platform.machine()}",
    )


def versions() -> dict[str, str]:
    """Installed versions of Python and of every package that takes part."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def one_line(error: BaseException) -> str:
    """An exception as one line of text without a path of this machine in it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for path, name in ((sys.prefix, "<env>"), (str(ROOT), "<repo>"), (str(Path.home()), "~")):
        text = text.replace(path, name) if len(path) > 1 else text
    return text if len(text) <= 300 else text[:297] + "..."


def _cpuinfo() -> list[dict[str, str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    blocks = [block for block in text.strip().split("\n\n") if block]
    pairs = [[line.split(":", 1) for line in b.splitlines() if ":" in line] for b in blocks]
    return [{key.strip(): value.strip() for key, value in block} for block in pairs]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
