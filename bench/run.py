"""One network: check, then time, then measure memory."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from functools import partial

import click
import torch
from torch import Tensor, nn

from bench.check import References, Truth, check_ours, truth
from bench.machine import one_line
from bench.memory import measure
from bench.methods import METHODS, UNIT, Call
from bench.nets import load
from bench.ours import OWN
from bench.schema import Memory, MethodResult, ModelRun, Provenance
from bench.timing import interleaved, spread

# The float64 reference takes several times the memory of what is measured, and of these networks
# longer for each sample and class than all that is measured of them.
CHECKED_SAMPLES = 4
CHECKED_SAMPLES_OF = {"convnext_tiny": 1, "vit_b_16": 1}


class UnsupportedError(RuntimeError):
    """A method cannot explain this network; the message says why."""


def run_network(
    network: str, batch: int, methods: Sequence[str], rounds: int, memory: bool, made_by: Provenance
) -> ModelRun:
    """Measure `methods`, the unit among them; raises WrongResultError before any timing.

    Only the first `CHECKED_SAMPLES` samples are compared with the float64 reference, out of results
    of the whole batch.
    """
    model, x = load(network, batch)
    some = x[: CHECKED_SAMPLES_OF.get(network, CHECKED_SAMPLES)]
    scores = _scores(model, x)
    truths: dict[object, Truth] = {}
    known: References = {}
    calls: dict[str, Call] = {}
    first: dict[str, float] = {}
    ratios: dict[str, float] = {}
    finite: dict[str, bool] = {}
    errors: dict[str, str] = {}
    checks = []
    for name in methods:
        _say(f"{network}: {METHODS[name].label}")
        try:
            calls[name], first[name], result = _first_call(name, model, x)
        except Exception as error:  # a library may raise anything; the table says what
            errors[name] = one_line(error)
            _say(f"  does not run: {errors[name]}")
            continue
        if name in OWN:
            what = OWN[name].truth
            if what not in truths:
                truths[what] = truth(model, some, name, known)
            found = _of_first(result, batch, len(some))
            checks.append(check_ours(name, found, model, some, truths[what], network))
        finite[name] = bool(result.isfinite().all())
        if name != UNIT and finite[name]:
            totals = result.flatten(1).double().sum(1)[: len(scores)]
            ratios[name] = float((totals / scores).median())
        del result
    truths.clear()
    known.clear()
    _say(f"{network}: {rounds} rounds of {len(calls)} methods")
    samples = interleaved({name: partial(call, x) for name, call in calls.items()}, rounds)
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    calls.clear()
    peaks = _memory(network, batch, list(seconds)) if memory else {}
    results = [
        MethodResult(
            method=name,
            label=METHODS[name].label,
            error=errors.get(name),
            first_call_seconds=first.get(name),
            seconds=seconds.get(name),
            samples=samples.get(name, []),
            cost=seconds[name] / seconds[UNIT] if name in seconds else None,
            finite=finite.get(name),
            relevance_over_score=ratios.get(name),
            memory=peaks.get(name),
        )
        for name in methods
    ]
    return ModelRun(
        network=network,
        input_shape=list(x.shape),
        provenance=made_by,
        rounds=rounds,
        checked_samples=len(some),
        forward_seconds=seconds[UNIT],
        forward_spread=spread(samples[UNIT]),
        checks=checks,
        results=results,
    )


def _of_first(result: Tensor, batch: int, count: int) -> Tensor:
    """The rows of the first samples, of T targets one after the other."""
    by_target = result.reshape(-1, batch, *result.shape[1:])
    return by_target[:, :count].flatten(0, 1)


def _first_call(name: str, model: nn.Module, x: Tensor) -> tuple[Call, float, Tensor]:
    method = METHODS[name]
    method.load_libraries()
    own = model if name == UNIT else copy.deepcopy(model)
    start = time.perf_counter()
    call = method.prepare(own, x)
    result = call(x)
    elapsed = time.perf_counter() - start
    needed = method.shape(x.shape)
    if name != UNIT and list(result.shape) != needed:
        raise UnsupportedError(f"relevance of shape {list(result.shape)}, needed {needed}")
    return call, elapsed, result


@torch.no_grad()
def _scores(model: nn.Module, x: Tensor) -> Tensor:
    scores: Tensor = model(x).amax(dim=1).double()
    return scores


def _memory(network: str, batch: int, methods: Sequence[str]) -> dict[str, Memory]:
    peaks = {}
    for name in methods:
        _say(f"{network}: memory of {METHODS[name].label}")
        peaks[name] = measure(network, batch, name)
    return peaks


def _say(text: str) -> None:
    click.echo(text, err=True)
