"""One model of the zoo, measured in this process.

    python -m bench.zoo_model LIBRARY NAME BATCH METHOD THREADS

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
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rapkernels as rk
from bench.memory import peak_bytes, settled_resident_bytes
from bench.timing import seconds_of
from bench.zoo_models import load

CALLS = 3
# Of a model whose first attribution took longer one more is timed: it is long enough.
_LONG = 10.0
# The largest conservation error of a node that a model may show, of the sum of |R| there.
CONSERVATION = 1e-5
METHODS = {"rap": rk.RAP, "lrp": rk.LRP}
# Operations that absorb less of what was sent back are not named.
_NAMED_FROM = 0.001


@dataclass(frozen=True)
class ZooRow:
    """What one model showed.

    Attributes:
        library: where the model is from.
        model: its name there.
        image: side of its input.
        parameters: how many.
        operations: nodes of the graph that relevance goes through.
        prepare_seconds: export and plan.
        forward_seconds: median time of a forward pass.
        cost: attribution in forward passes of the same batch, medians.
        peak_gb: resident memory above the loaded model during the first attribution.
        finite: whether every entry of the relevance is.
        conservation: largest conservation error of a node, of the sum of absolute relevance there.
        total: sum of the relevance of the input, over the logit, of the sample where it is farthest
            from 1.
        growth: largest sum of absolute relevance of a node, over the logit.
        absorbed: what met no message, over the logit, of the sample of ``total``.
        absorbers: the two kinds of operations that absorbed most, each with its share.
    """

    library: str
    model: str
    image: int
    parameters: int
    operations: int
    prepare_seconds: float
    forward_seconds: float
    cost: float
    peak_gb: float
    finite: bool
    conservation: float
    total: float
    growth: float
    absorbed: float
    absorbers: str

    @property
    def passes(self) -> bool:
        """Whether it is finite and conserves."""
        return self.finite and self.conservation <= CONSERVATION


def measure(library: str, name: str, batch: int, method: str) -> ZooRow:
    """Export, plan, attribute and time one model."""
    model, x = load(library, name, batch)
    warnings.simplefilter("ignore")
    zero = settled_resident_bytes()
    explainer = METHODS[method](model)
    found: list[Any] = []
    started = time.perf_counter()
    plan = explainer.plan(x)
    prepared = time.perf_counter() - started
    started = time.perf_counter()
    peak, _ = peak_bytes(lambda: found.append(explainer.attribute(x)))
    is_long = time.perf_counter() - started > _LONG
    (relevance,) = found
    forward, attribution = _seconds(model, x, explainer, 1 if is_long else CALLS)
    _, report = explainer.attribute(x, return_report=True)
    share = report.over_sent(report.total)
    worst = int((share - 1).abs().argmax())
    absorbed: defaultdict[str, float] = defaultdict(float)
    for row in report:
        absorbed[row.operation.split(".")[1]] += float(report.over_sent(row.absorbed)[worst])
    return ZooRow(
        library=library,
        model=name,
        image=x.shape[-1],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        operations=sum(row.rule != "-" for row in plan),
        prepare_seconds=prepared,
        forward_seconds=forward,
        cost=attribution / forward,
        peak_gb=(peak - zero) / 1e9,
        finite=bool(torch.isfinite(relevance).all()),
        conservation=float(report.worst().error.max()),
        total=float(share[worst]),
        growth=float(max(report.over_sent(row.magnitude).abs().max() for row in report)),
        absorbed=sum(absorbed.values()),
        absorbers=_largest(absorbed),
    )


def _seconds(model: nn.Module, x: Tensor, explainer: Any, calls: int) -> tuple[float, float]:
    """Median times of a forward and of an attribution, measured in turns."""
    forward: list[float] = []
    attribution: list[float] = []
    gc.collect()
    for _ in range(calls):
        with torch.no_grad():
            forward.append(seconds_of(lambda: model(x)))
        attribution.append(seconds_of(lambda: explainer.attribute(x)))
    return statistics.median(forward), statistics.median(attribution)


def _largest(absorbed: Mapping[str, float]) -> str:
    most = sorted(absorbed.items(), key=lambda item: -abs(item[1]))[:2]
    return ", ".join(f"{name} {part:.3g}" for name, part in most if abs(part) >= _NAMED_FROM)


if __name__ == "__main__":
    library, name, batch, method, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(dataclasses.asdict(measure(library, name, int(batch), method))))
