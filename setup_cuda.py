"""Which CUDA build is possible, and its flags: for setup.py and bench/ptxas.py.

Nothing here asks for a GPU or imports torch. The environment decides: RAPKERNELS_CUDA (0, 1 or
auto), CUDA_HOME, TORCH_CUDA_ARCH_LIST, RAPKERNELS_STRICT and RAPKERNELS_PTXAS.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

USUAL_HOME = Path("/usr/local/cuda")
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "12.0")
_ARCHITECTURE = re.compile(r"(\d+)\.(\d[af]?)(\+PTX)?")


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit with compiler and headers, and its release, such as "13.0"."""

    home: Path
    release: str

    @property
    def nvcc(self) -> Path:
        """The toolkit's compiler."""
        return self.home / "bin" / "nvcc"


class NoCudaError(Exception):
    """Why the CUDA kernels cannot be built, and what would help."""


def choose(environ: Mapping[str, str], torch_cuda: str | None) -> Toolkit | None:
    """The toolkit to build the CUDA kernels with; None for a build without them.

    Args:
        environ: the environment variables.
        torch_cuda: ``torch.version.cuda``.

    Raises:
        SystemExit: RAPKERNELS_CUDA=1 cannot be met, or a variable has no such value.
    """
    switch = setting(environ, "RAPKERNELS_CUDA", ("auto", "0", "1"))
    if switch == "0":
        return None
    try:
        return matching_toolkit(environ, torch_cuda)
    except NoCudaError as reason:
        if switch == "1":
            raise SystemExit(f"RAPKERNELS_CUDA=1 cannot be met: {reason}") from None
        print(f"rapkernels is built without CUDA kernels: {reason}", file=sys.stderr)
        return None


def matching_toolkit(environ: Mapping[str, str], torch_cuda: str | None) -> Toolkit:
    """The installed toolkit, where torch was built with the same major release of CUDA."""
    if torch_cuda is None:
        raise NoCudaError("this torch has no CUDA; install one that has, see pytorch.org")
    toolkit = find_toolkit(environ)
    if toolkit.release.split(".")[0] != torch_cuda.split(".")[0]:
        raise NoCudaError(
            f"torch has CUDA {torch_cuda}, the toolkit in {toolkit.home} is {toolkit.release}; "
            f"set CUDA_HOME to a toolkit of CUDA {torch_cuda}"
        )
    return toolkit


def find_toolkit(environ: Mapping[str, str]) -> Toolkit:
    """The first of the usual places that holds both the compiler and its headers."""
    for home in _places(environ):
        if (home / "include" / "cuda_runtime.h").is_file() and (home / "bin" / "nvcc").is_file():
            return Toolkit(home, _release(home / "bin" / "nvcc"))
    raise NoCudaError(
        "no CUDA toolkit was found; set CUDA_HOME to the folder with bin/nvcc and "
        "include/cuda_runtime.h"
    )


def _places(environ: Mapping[str, str]) -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            yield Path(environ[name])
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc is not None:
        prefix = Path(nvcc).parent.parent
        yield prefix
        # nvcc on PATH may be a script or a link that stands outside its toolkit.
        top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "-x", "cu", "-"), re.MULTILINE)
        if top:
            yield Path(top[1].strip()).resolve()
        yield prefix / "cuda"
    yield USUAL_HOME


def _release(nvcc: Path) -> str:
    found = re.search(r"release (\d+\.\d+)", _output(str(nvcc), "--version"))
    if found is None:
        raise NoCudaError(f"{nvcc} --version names no release; is the toolkit complete?")
    return found[1]


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout


def architectures(environ: Mapping[str, str], nvcc: Path) -> tuple[str, ...]:
    """TORCH_CUDA_ARCH_LIST, or else 8.0, 9.0 and 12.0+PTX as far as this nvcc has them."""
    chosen = re.split(r"[;,\s]+", environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; ,"))
    if chosen == [""]:
        known = _output(str(nvcc), "--list-gpu-arch").split()
        fit = [a for a in DEFAULT_ARCHITECTURES if not known or f"compute_{_digits(a)}" in known]
        # Compute capability 8.0 is in every toolkit that this torch can have been built with.
        return (*fit[:-1], fit[-1] + "+PTX")
    for name in chosen:
        if not _ARCHITECTURE.fullmatch(name):
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST must hold numbers such as '8.0;9.0a;12.0+PTX', got {name!r}"
            )
    return tuple(dict.fromkeys(chosen))


def gencode(architectures: Sequence[str]) -> list[str]:
    """What tells nvcc to compile for these architectures."""
    flags = []
    for name in architectures:
        number = _digits(name)
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _digits(architecture: str) -> str:
    return architecture.removesuffix("+PTX").replace(".", "")


def nvcc_flags(architectures: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The flags for a .cu file, besides those that torch adds."""
    flags = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-Wall,-Wno-unknown-pragmas"]
    if is_on(environ, "RAPKERNELS_STRICT"):
        flags += ["-Werror=all-warnings", "-Xcompiler=-Werror"]
    if is_on(environ, "RAPKERNELS_PTXAS"):
        flags.append("-Xptxas=-v")
    return flags + gencode(architectures)


def is_on(environ: Mapping[str, str], name: str) -> bool:
    """Whether a variable that is 0 or 1 is 1."""
    return setting(environ, name, ("0", "1")) == "1"


def setting(environ: Mapping[str, str], name: str, values: Sequence[str]) -> str:
    """The value of a variable; the first one where it is not set."""
    value = environ.get(name) or values[0]
    if value not in values:
        raise SystemExit(f"{name} must be one of {', '.join(values)}, got {value!r}")
    return value
