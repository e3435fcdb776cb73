"""The installed wheel, beside a CPU-only torch and without torchvision.

"make test-minimal" builds the wheel, installs it into an environment of its own and runs this file
outside the source tree.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import rapkernels as rk


class Residual(nn.Module):
    """A small network with most of what the rules cover."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU6())
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        return self.head(x + self.branch(x))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 17, 20)


def test_torch_has_no_cuda() -> None:
    assert torch.version.cuda is None


def test_torchvision_is_not_there() -> None:
    assert importlib.util.find_spec("torchvision") is None


def test_the_installed_wheel_is_what_is_tested() -> None:
    assert "site-packages" in Path(rk.__file__).parts


def test_the_native_operations_are_loaded() -> None:
    info = rk.build_info()
    assert info["extension"] is True
    assert info["openmp"]
    assert info["cuda"] is False


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
@pytest.mark.parametrize("variant", ["default", "paper"])
def test_relevance_is_conserved(network: nn.Module, x: torch.Tensor, variant: str) -> None:
    explainer = rk.RAP(copy.deepcopy(network).double(), variant=variant, backend="native")
    relevance, report = explainer.attribute(x.double(), return_report=True)
    assert relevance.shape == x.shape
    assert float(report.worst().error.max()) <= 1e-12
    absorbed = sum(row.absorbed for row in report.rows)
    magnitude = float(max(row.magnitude.max() for row in report.rows))
    torch.testing.assert_close(
        relevance.flatten(1).sum(1), report.score - absorbed, rtol=0, atol=1e-12 * magnitude
    )


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
def test_native_equals_the_reference(network: nn.Module, x: torch.Tensor) -> None:
    native = rk.attribute(network, x, backend="native")
    reference = rk.attribute(network, x, backend="reference")
    tolerance = 1e-4 * float(reference.abs().max())
    torch.testing.assert_close(native, reference, rtol=0, atol=tolerance)
