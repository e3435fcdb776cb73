"""The installed extension holds CUDA kernels, and loads where there is no GPU.

"make cuda-build" builds it and runs this file with the architectures that must be in.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import rapkernels as rk
from rapkernels import _library


def check_build_info(architectures: list[str]) -> None:
    info = rk.build_info()
    assert info["extension"], info["error"]
    assert info["cuda"], "the extension was built without CUDA kernels"
    assert list(info["cuda_architectures"]) == architectures, info["cuda_architectures"]
    assert info["cuda_version"].split(".")[0] == str(torch.version.cuda).split(".")[0]
    print(f"CUDA {info['cuda_version']} kernels for {', '.join(architectures)}")


def check_ops() -> None:
    """Every op that runs on the CPU is registered for CUDA."""
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("rapkernels::")]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    on_cpu = [name for name in names if has_kernel(name, "CPU")]
    missing = [name for name in on_cpu if not has_kernel(name, "CUDA")]
    assert on_cpu
    assert not missing, f"without a CUDA implementation: {missing}"
    print(f"{len(on_cpu)} ops, all of them registered for CUDA")


def check_machine_code(architectures: list[str]) -> None:
    """What is in the file is what its build said, where cuobjdump can be had."""
    tool = cuobjdump()
    if tool is None:
        print("not looked into the file: no cuobjdump on PATH or from nvidia-cuda-cuobjdump")
        return
    listed = subprocess.run(
        [tool, "--list-elf", _library._C.__file__], stdout=subprocess.PIPE, text=True, check=True
    )
    found = set(re.findall(r"\.sm_(\w+)\.cubin", listed.stdout))
    assert found == {name.removesuffix("+PTX").replace(".", "") for name in architectures}, found
    print(f"machine code for {', '.join(sorted(found))}")


def cuobjdump() -> str | None:
    """That of the toolkit, or that of the package."""
    package = importlib.util.find_spec("nvidia")
    places = list(package.submodule_search_locations or []) if package else []
    folders = [None, *(str(path) for place in places for path in Path(place).glob("cu*/bin"))]
    return next(filter(None, (shutil.which("cuobjdump", path=f) for f in folders)), None)


if __name__ == "__main__":
    chosen = sys.argv[1].split(";")
    check_build_info(chosen)
    check_ops()
    check_machine_code(chosen)
