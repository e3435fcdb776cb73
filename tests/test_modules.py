"""The modules of a model are those that torch lists, by the same paths."""

from __future__ import annotations

import pytest
from torch import nn

from rapkernels.modules import named_modules, tensors_of


def shared() -> nn.Module:
    """One module in two places, a missing one, and buffers beside parameters."""
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))
    model = nn.Sequential(block, nn.ModuleList([nn.ReLU(), block]), nn.Linear(3, 3, bias=False))
    model.register_module("none", None)
    return model


@pytest.mark.parametrize("remove_duplicate", [True, False])
def test_named_modules(remove_duplicate: bool) -> None:
    model = shared()
    wanted = [*model.named_modules(remove_duplicate=remove_duplicate)]
    assert named_modules(model, remove_duplicate) == wanted


def test_tensors() -> None:
    model = shared()
    parameters, buffers = tensors_of(model)
    assert {*map(id, parameters)} == {*map(id, model.parameters())}
    assert {*map(id, buffers)} == {*map(id, model.buffers())}
