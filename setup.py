"""Builds the extension; everything else about the package stands in pyproject.toml.

RAPKERNELS_CUDA=0|1|auto chooses the CUDA build: auto compiles csrc/cuda where CUDA_HOME and
torch.version.cuda are there (a GPU need not be), 1 insists on it, 0 leaves it out.
"""

import os
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        "rapkernels builds against the torch that is installed: install torch first, then "
        "'pip install --no-build-isolation .'"
    ) from error

ROOT = Path(__file__).parent
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fopenmp",
    # Selects vectorise only where a masked-out division may not trap.
    "-fno-trapping-math",
    "-fno-math-errno",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
]


def with_cuda() -> bool:
    """Whether the CUDA kernels are compiled in."""
    switch = os.environ.get("RAPKERNELS_CUDA", "auto")
    if switch not in ("0", "1", "auto"):
        raise SystemExit(f"RAPKERNELS_CUDA must be 0, 1 or auto, got {switch!r}")
    possible = cpp_extension.CUDA_HOME is not None and torch.version.cuda is not None
    if switch == "1" and not possible:
        raise SystemExit(
            "RAPKERNELS_CUDA=1 needs CUDA_HOME and a torch built with CUDA, got "
            f"CUDA_HOME={cpp_extension.CUDA_HOME} and torch.version.cuda={torch.version.cuda}"
        )
    kernels = list((ROOT / "csrc" / "cuda").glob("*.cu"))
    if switch == "1" and not kernels:
        raise SystemExit("RAPKERNELS_CUDA=1 needs CUDA kernels, and this version has none yet")
    return switch != "0" and possible and bool(kernels)


def extension():
    """The one extension module, rapkernels._C."""
    cuda = with_cuda()
    patterns = ["csrc/*.cpp", "csrc/cpu/*.cpp"] + (["csrc/cuda/*.cu"] if cuda else [])
    sources = sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    flags = {"cxx": CXX_FLAGS, "nvcc": ["-O3"]} if cuda else {"cxx": CXX_FLAGS}
    return kind(
        "rapkernels._C",
        sources,
        depends=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.h")),
        define_macros=[("RAPKERNELS_WITH_CUDA", None)] if cuda else [],
        extra_compile_args=flags,
        # at::parallel_for is serial unless OpenMP is on when linking as well.
        extra_link_args=["-fopenmp"],
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension})
