"""What one call of RAP asks of torch on small networks: a guard against regressions.

    python -m bench.calls            # compare with the committed figures
    python -m bench.calls --renew    # commit these instead

Operators that are called and bytes that are allocated do not depend on the machine or on how busy
it is; tests/test_guard.py compares them in every run of the tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch
from torch import nn

from bench.guard import FOLDER, Figures, changes, other_than, read, write
from bench.nets import initialise
from bench.profiled import counts

FILE = FOLDER / "calls.json"
# For changes that nobody would take the trouble to judge.
MARGIN = 0.02
BATCH, SIDE = 2, 64


def _vgg11() -> nn.Module:
    model: nn.Module = importlib.import_module("torchvision.models").vgg11()
    # Of its own linear layers the weights, 0.5 GB, would be all that counts.
    setattr(model, "classifier", nn.Linear(512 * 49, 10))  # noqa: B010
    return model


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = getattr(importlib.import_module("torchvision.models"), name)()
        return model

    return build


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg11": _vgg11,
    "resnet18": _torchvision("resnet18"),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
}


def measure(explainer: Callable[[nn.Module], Any] | None = None) -> Figures:
    """Count one call on each network; `explainer` makes it of a model, RAP by default."""
    make = importlib.import_module("rapkernels").RAP if explainer is None else explainer
    threads = torch.get_num_threads()
    # Sums over a whole tensor take a buffer for each thread.
    torch.set_num_threads(1)
    try:
        values: dict[str, float] = {}
        for name, build in NETWORKS.items():
            torch.manual_seed(0)
            model, x = build().eval(), torch.randn(BATCH, 3, SIDE, SIDE)
            model.apply(initialise)
            made = make(model)
            # The first call exports the model.
            made.attribute(x)
            found = counts(partial(made.attribute, x))
            values[f"{name}: operators"] = found.operators
            values[f"{name}: allocated, bytes"] = found.allocated
            values[f"{name}: peak, bytes"] = found.peak
    finally:
        torch.set_num_threads(threads)
    return Figures(of=versions(), values=values)


def versions() -> dict[str, str]:
    """What the figures depend on."""
    torchvision = importlib.import_module("torchvision")
    return {
        "torch": _release(torch.__version__),
        "torchvision": _release(torchvision.__version__),
        # Convolutions of our own run with AVX-512 alone, and oneDNN's layouts are others too.
        "instruction set": torch.backends.cpu.get_cpu_capability(),
    }


def _release(version: str) -> str:
    return version.split("+")[0]


@click.command(help="Compare what RAP asks of torch with the committed figures.")
@click.option("--renew", is_flag=True, help="Write the committed figures instead.")
def main(renew: bool) -> None:
    """Compare or renew; the text for users is the command's help."""
    found = measure()
    if renew:
        write(found, FILE)
        return
    committed = read(FILE)
    other = other_than(found.of, committed.of)
    lines = [other] if other else changes(found.values, committed.values, MARGIN)
    if lines:
        raise click.ClickException("\n".join([*lines, "wanted? python -m bench.calls --renew"]))
    click.echo(f"{len(found.values)} figures are as committed, within {MARGIN:.0%}")


if __name__ == "__main__":
    main()
