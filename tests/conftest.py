"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from rapkernels import reference


def native_operations() -> ModuleType:
    """``rapkernels.ops``, or a failure that says why the extension could not be loaded."""
    from rapkernels import _library, ops

    if not _library.has_ext():
        pytest.fail(f"the native extension did not load: {_library.import_error()}", pytrace=False)
    return ops


def tested_backends() -> list[str]:
    """Both, unless RAPKERNELS_TEST_BACKEND=reference says that there is no extension to test."""
    if os.environ.get("RAPKERNELS_TEST_BACKEND") == "reference":
        return ["reference"]
    return ["reference", "native"]


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
    if "native" in tested_backends():
        return
    without = [item for item in items if "native" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]
