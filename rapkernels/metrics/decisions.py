"""What a model decides, for the metrics that ask it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rapkernels import checks
from rapkernels.errors import ArgumentError, NonFiniteOutputError
from rapkernels.findings import Findings
from rapkernels.targets import Target, resolve_target


def check_images(model: Any, x: Any) -> None:
    """Raise unless the model can be asked about the images.

    Raises:
        ArgumentTypeError: ``model`` is not a module, ``x`` not a floating-point tensor of the
            model's dtype.
        ArgumentError: ``x`` is not ``(N, C, H, W)`` with N at least 1, is not finite, or is on
            another device than the model.
        TrainingModeError: the model is in train mode with layers that behave differently there.
    """
    checks.check_model(model)
    checks.check_eval_mode(model)
    checks.check_input(model, x)
    if x.dim() != 4 or x.shape[0] < 1:
        raise ArgumentError(
            f"x must have shape (N, C, H, W) with N at least 1, got shape {list(x.shape)}"
        )
    findings = Findings(x.device)
    checks.check_finite(x, findings)
    findings.settle()


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """The logits ``(N, classes)``, float64.

    Raises:
        ArgumentError: the model returns something else.
        NonFiniteOutputError: logits are NaN or infinite.
    """
    parts = []
    for images in torch.split(x, batch_size):
        logits = model(images)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            shaped = isinstance(logits, Tensor)
            got = f"shape {list(logits.shape)}" if shaped else type(logits).__name__
            raise ArgumentError(
                f"model must return logits of shape (N, classes), got {got} for {len(images)} "
                "images"
            )
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteOutputError("model returns NaN or infinite logits for a finite input")
        parts.append(logits.double())
    return torch.cat(parts)


def classes_of(target: Target, logits: Tensor) -> Tensor:
    """The target's class of each sample, int64 ``(N,)``; None is the predicted class.

    Raises:
        ArgumentTypeError, ArgumentError: see :func:`rapkernels.targets.resolve_target`.
    """
    findings = Findings(logits.device)
    resolved = resolve_target(target, logits.shape, logits.device, findings)
    findings.settle()
    return logits.argmax(1) if resolved is None else resolved
