"""Weights: read a state dict from a file, without running any code that the file may hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ._optional import require
from .errors import RapError

_WRAPPERS = ("state_dict", "model_state_dict", "model_ema", "model")
_DATA_PARALLEL_PREFIX = "module."
_SHOWN_KEYS = 3
# The published DenseNet files still have the names of an older torchvision.
_OLD_DENSENET_NAME = re.compile(r"(\.denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
# Counts batches in training only; files from before torch 0.4.1 lack it.
_TRAINING_COUNTER = "num_batches_tracked"


class CheckpointError(RapError, ValueError):
    """A weights file is missing, unreadable, or does not fit the network."""


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict (``.pth``, ``.pt`` by ``torch.load(weights_only=True)``; ``.safetensors``).

    A state dict kept under a key such as "state_dict" or "model" is found, and the "module."
    prefix of DataParallel is taken off.

    Raises:
        CheckpointError: no such file, or no state dict of plain tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file.")
    content = _read(path)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not _is_state_dict(content):
        raise CheckpointError(
            f"{path}: holds no state dict (names to tensors), got {type(content).__name__}; "
            "save the network with torch.save(model.state_dict(), FILE)."
        )
    state: dict[str, torch.Tensor] = dict(content)
    if all(name.startswith(_DATA_PARALLEL_PREFIX) for name in state):
        state = {name.removeprefix(_DATA_PARALLEL_PREFIX): value for name, value in state.items()}
    return {_OLD_DENSENET_NAME.sub(r"\1\2", name): value for name, value in state.items()}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        safetensors = require("safetensors.torch", "reading a .safetensors file", "safetensors")
        try:
            return safetensors.load_file(path)
        except Exception as error:  # the package's own error class is not public
            raise CheckpointError(f"{path}: not a safetensors file ({error}).") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # Damaged or foreign files make the unpickler raise nearly anything, and torch's own text
        # spans many lines and advises to switch the protection off.
        raise CheckpointError(
            f"{path}: not a state dict that loads with weights_only=True; save the network with "
            "torch.save(model.state_dict(), FILE)."
        ) from None


def _is_state_dict(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(
            isinstance(name, str) and isinstance(value, torch.Tensor)
            for name, value in content.items()
        )
    )


def count_outputs(model: nn.Module, state: Mapping[str, torch.Tensor]) -> int | None:
    """How many classes a classifier like ``model`` would have with the weights ``state``.

    The rows of the network's last weight or bias; None where ``state`` has no such entry.
    """
    for name, own in reversed(list(model.state_dict().items())):
        if own.dim() in (1, 2):
            return int(state[name].shape[0]) if name in state else None
    return None


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load ``state`` into ``model``, every name and shape matching.

    Raises:
        CheckpointError: names or shapes differ; the message shows the first few.
    """
    expected = model.state_dict()
    missing = [
        name for name in expected if name not in state and not name.endswith(_TRAINING_COUNTER)
    ]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    faults = [
        f"{what} {', '.join(names[:_SHOWN_KEYS])}{' ...' if len(names) > _SHOWN_KEYS else ''}"
        for what, names in (("lacks", missing), ("adds", unexpected), ("has", misshapen))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{source}: these weights are of another network: the file {'; it '.join(faults)}."
        )
    model.load_state_dict(dict(state))
