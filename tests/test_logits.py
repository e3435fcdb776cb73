"""Models that end in a softmax are explained by their logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rapkernels as rk
from tests.networks import conv, images, seeded

METHODS = {
    "rap": rk.RAP,
    "lrp": rk.LRP,
    "equilibrium": rk.AttributionEquilibrium,
    "sharing_ratio": rk.SharingRatio,
}


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(-1)])
def test_what_is_explained_are_the_logits(end: nn.Module, method: str) -> None:
    logits = seeded(lambda: nn.Sequential(conv(3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))
    model, x = nn.Sequential(logits, end, nn.Dropout()).eval(), images()
    for target in (None, 2):
        found, report = METHODS[method](model).attribute(x, target, return_report=True)
        expected, same = METHODS[method](logits).attribute(x, target, return_report=True)
        assert torch.equal(found, expected)
        assert torch.equal(report.score, same.score)
        assert torch.equal(report.target, same.target)


def test_a_softmax_in_the_middle_stays() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.Softmax(1)))
    model.append(nn.Linear(5, 5).double())
    with pytest.raises(rk.errors.UnsupportedOperationError, match=r"aten\.softmax\.int"):
        rk.attribute(model.eval(), images(), 1)
