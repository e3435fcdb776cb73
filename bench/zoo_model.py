"""One model of the zoo, measured in this process: `python -m bench.zoo_model NAME BATCH METHOD`.

It prints one JSON object, a :class:`ZooRow`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rapkernels as rk
from bench.memory import peak_bytes, settled_resident_bytes
from bench.timing import seconds_of

SEED = 0
CALLS = 3
METHODS = {"rap": rk.RAP, "lrp": rk.LRP}


@dataclass(frozen=True)
class ZooRow:
    """What one model showed.

    Attributes:
        model: its name in torchvision.
        image: side of its input.
        parameters: how many.
        operations: nodes of the graph that relevance goes through.
        prepare_seconds: export and plan.
        cost: attribution in forward passes of the same batch, medians.
        peak_gb: resident memory above the loaded model during the first attribution.
        finite: whether every entry of the relevance is.
        conservation: largest conservation error of a node, of the sum of absolute relevance there.
        total: sum of the relevance of the input, over the logit, of the sample where it is farthest
            from 1.
        absorbed: what met no message, over the logit, of that sample.
        growth: largest sum of absolute relevance of a node, over the logit.
        absorber: the node that absorbed most, and its operation.
    """

    model: str
    image: int
    parameters: int
    operations: int
    prepare_seconds: float
    cost: float
    peak_gb: float
    finite: bool
    conservation: float
    total: float
    absorbed: float
    growth: float
    absorber: str


def load(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """A torchvision classifier with random weights and BatchNorm statistics, and its input."""
    from torchvision import models

    torch.manual_seed(SEED)
    options: dict[str, Any] = {"init_weights": False} if name in _SLOW_TO_INITIALISE else {}
    model = models.get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    side = _SIDES.get(name, 224)
    return model.eval().requires_grad_(False), torch.randn(batch, 3, side, side)


_SLOW_TO_INITIALISE = ("googlenet", "inception_v3")
_SIDES = {"inception_v3": 299}


def measure(name: str, batch: int, method: str) -> ZooRow:
    """Export, plan, attribute and time one model."""
    model, x = load(name, batch)
    warnings.simplefilter("ignore")
    zero = settled_resident_bytes()
    explainer = METHODS[method](model)
    found: list[Any] = []
    started = time.perf_counter()
    plan = explainer.plan(x)
    prepared = time.perf_counter() - started
    peak, _ = peak_bytes(lambda: found.append(explainer.attribute(x)))
    (relevance,) = found
    with torch.no_grad():
        forward = statistics.median(seconds_of(lambda: model(x)) for _ in range(CALLS))
    gc.collect()
    attribution = statistics.median(
        seconds_of(lambda: explainer.attribute(x)) for _ in range(CALLS)
    )
    _, report = explainer.attribute(x, return_report=True)
    score = report.score.double()
    share = report.total / score
    worst = int((share - 1).abs().argmax())
    absorbed = torch.stack([row.absorbed for row in report.rows])
    most = report.rows[int(absorbed.abs().amax(1).argmax())]
    return ZooRow(
        model=name,
        image=x.shape[-1],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        operations=sum(row.rule != "-" for row in plan.rows),
        prepare_seconds=prepared,
        cost=attribution / forward,
        peak_gb=(peak - zero) / 1e9,
        finite=bool(torch.isfinite(relevance).all()),
        conservation=float(report.worst().error.max()),
        total=float(share[worst]),
        absorbed=float((absorbed.sum(0) / score)[worst]),
        growth=float(max((row.magnitude / score.abs()).max() for row in report.rows)),
        absorber=f"{most.node} ({most.operation})",
    )


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    print(json.dumps(dataclasses.asdict(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3]))))
