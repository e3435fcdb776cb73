"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch

from rapkernels import reference
from tests import emulated

DEVICE = torch.device(os.environ.get("RAPKERNELS_TEST_DEVICE", "cpu"))


def pytest_configure() -> None:
    """Tensors and modules are made on the device under test; float32 is float32 there."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("RAPKERNELS_TEST_DEVICE=cuda needs a GPU, and torch finds none")
    if DEVICE.type != "cpu":
        torch.set_default_device(DEVICE)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        # For the reference, which tests compare bit by bit; test_determinism goes without.
        torch.backends.cudnn.deterministic = True


BACKEND = os.environ.get("RAPKERNELS_TEST_BACKEND", "")
if BACKEND == "emulated":
    emulated.take_the_place_of_native()


def native_operations() -> ModuleType:
    """``rapkernels.ops``, or a failure that says why the extension could not be loaded."""
    from rapkernels import _library, ops

    if not _library.has_ext():
        pytest.fail(f"the native extension did not load: {_library.import_error()}", pytrace=False)
    return ops


def tested_backends() -> list[str]:
    """Both, unless RAPKERNELS_TEST_BACKEND says otherwise.

    "reference" is for where there is no extension to test; "emulated" puts the CUDA kernels in the
    place of the native ones (CONTRIBUTING, "CUDA without a GPU").
    """
    return {"reference": ["reference"], "emulated": ["native"]}.get(
        BACKEND, ["reference", "native"]
    )


@pytest.fixture(scope="session", params=tested_backends())
def backend(request: pytest.FixtureRequest) -> str:
    """The name of the backend, for each of those under test."""
    return str(request.param)


@pytest.fixture(scope="session")
def operations(backend: str) -> ModuleType:
    """The module with the operations of ``backend``."""
    return reference if backend == "reference" else native_operations()


@pytest.fixture(scope="session")
def native() -> ModuleType:
    """The native operations, for tests that have nothing to say of the reference."""
    return native_operations()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small tensors, which only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "native" not in tested_backends():
        leave_out(config, items, lambda item: "native" in getattr(item, "fixturenames", ()))
    leave_out(config, items, marked("built_extension" if BACKEND == "emulated" else "emulated"))
    if DEVICE.type != "cpu":
        leave_out(config, items, marked("cpu_only"))
    if DEVICE.type != "cuda" and BACKEND != "emulated":
        leave_out(config, items, marked("cuda_kernels"))
    if DEVICE.type != "cuda":
        reason = "needs a GPU and RAPKERNELS_TEST_DEVICE=cuda"
        for item in filter(marked("cuda"), items):
            item.add_marker(pytest.mark.skip(reason=reason))


def marked(name: str) -> Callable[[pytest.Item], bool]:
    """Whether an item has the marker ``name``."""
    return lambda item: item.get_closest_marker(name) is not None


def leave_out(
    config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[pytest.Item], bool]
) -> None:
    """Deselect items, with a count in pytest's last line."""
    kept: list[pytest.Item] = []
    without: list[pytest.Item] = []
    for item in items:
        (without if unwanted(item) else kept).append(item)
    config.hook.pytest_deselected(items=without)
    items[:] = kept
