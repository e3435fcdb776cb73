"""Builds the extension; everything else about the package stands in pyproject.toml.

README lists the environment variables; setup_cuda.py decides about the CUDA kernels.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

# Build front ends run this file without its folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
import setup_cuda

try:
    import torch

    # Before cpp_extension, which takes CUDA_HOME when it is imported and may guess a wrong one.
    TOOLKIT = setup_cuda.choose(os.environ, torch.version.cuda)
    if TOOLKIT:
        os.environ["CUDA_HOME"] = str(TOOLKIT.home)
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
# gcc believes that an empty std::optional<Tensor> is destroyed.
STRICT_FLAGS = ["-Werror", "-Wno-maybe-uninitialized"]


def extension() -> Extension:
    """The one extension module, rapkernels._C."""
    strict = setup_cuda.is_on(os.environ, "RAPKERNELS_STRICT")
    patterns = ["csrc/*.cpp", "csrc/cpu/*.cpp"]
    flags = {"cxx": CXX_FLAGS + (STRICT_FLAGS if strict else [])}
    macros: list[tuple[str, str | None]] = []
    kind = cpp_extension.CppExtension
    if TOOLKIT:
        architectures = setup_cuda.architectures(os.environ, TOOLKIT.nvcc)
        print(f"CUDA kernels: {TOOLKIT.home} ({TOOLKIT.release}), {', '.join(architectures)}")
        patterns += ["csrc/cuda/*.cpp", "csrc/cuda/*.cu"]
        flags["nvcc"] = setup_cuda.nvcc_flags(architectures, os.environ)
        macros += [
            ("RAPKERNELS_WITH_CUDA", None),
            ("RAPKERNELS_CUDA_ARCHS", f'"{";".join(architectures)}"'),
        ]
        cpp_extension.CUDA_HOME = str(TOOLKIT.home)
        kind = cpp_extension.CUDAExtension
    built = kind(
        "rapkernels._C",
        sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern)),
        depends=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.*h")),
        define_macros=macros,
        extra_compile_args=flags,
        # at::parallel_for is serial unless OpenMP is on when linking as well.
        extra_link_args=["-fopenmp"],
    )
    if strict:
        # Only our own code is held to it. Not for everyone: ninja would not see torch change.
        system = [word for path in built.include_dirs for word in ("-isystem", path)]
        built.include_dirs = []
        built.extra_compile_args = {name: own + system for name, own in flags.items()}
    return built


setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension})
