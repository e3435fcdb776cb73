"""What the measuring stages have in common: options, precision, errors that end a process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import torch

from bench.gpu.messages import CONTEXT_LOST, CUT_OFF, Reporter

F = TypeVar("F", bound=Callable[..., Any])


class ContextLostError(RuntimeError):
    """The CUDA context of this process is of no more use; only a new process can go on."""


class OutOfTimeError(RuntimeError):
    """The time of this stage is over."""


@dataclass
class Deadline:
    """A point in time after which nothing new is begun."""

    end: float

    @staticmethod
    def after(seconds: float) -> Deadline:
        """That many seconds from now."""
        return Deadline(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def check(self) -> None:
        """Raise OutOfTimeError where it has passed."""
        if self.left() == 0:
            raise OutOfTimeError


def stage_options(function: F) -> F:
    """The options that every stage takes."""
    options = [
        click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda"),
        click.option("--tiny", is_flag=True, help="Small shapes, to try the harness."),
        click.option("--seconds", type=float, default=1e6, help="Begin nothing new after these."),
        click.option("--marked", is_flag=True, help="Print results for a driver, as JSON lines."),
        click.option("--done", multiple=True, help="Key of work that is not done again."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@contextlib.contextmanager
def stage(reporter: Reporter) -> Iterator[None]:
    """Turn the end of time and the loss of the context into exit statuses that a driver knows."""
    try:
        yield
    except OutOfTimeError as error:
        reporter.detail(f"out of time{f': {error}' if str(error) else ''}")
        raise SystemExit(CUT_OFF) from error
    except ContextLostError as error:
        reporter.detail(str(error))
        raise SystemExit(CONTEXT_LOST) from error


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """TF32 on for "tf32", off for all others; torch's own settings come back afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def storage(name: str) -> torch.dtype:
    """The dtype that tensors of a precision are stored in."""
    return torch.float32 if name == "tf32" else dtype_of(name)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of that name."""
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"not a dtype: {name}")
    return found


def require_context(device: str) -> None:
    """Raise ContextLostError where an error has left the CUDA context unusable."""
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise ContextLostError(f"the CUDA context is lost: {str(error).splitlines()[0]}") from error
