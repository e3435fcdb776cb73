"""Checks of values: made at once on the CPU, at the end of the call where a device holds them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from rapkernels import host


class Findings:
    """The checks of one call.

    What a test says of values on a device stays there as a flag, so that the host does not wait
    before all work has been handed out: :meth:`settle` reads the flags of a call together. While
    the device's stream is captured in a CUDA graph nothing can be read: such tests are left out.

    Args:
        device: where the call runs.

    Attributes:
        capturing: whether the device's stream is captured.
        first: number of the first sample of the part of the batch that is checked, for messages.
        targets: the number of targets of the whole call.
    """

    def __init__(self, device: torch.device) -> None:
        self.first = 0
        self.targets = 1
        self.capturing = host.is_capturing(device)
        self._pending: list[tuple[Tensor, Callable[[], None]]] = []

    def check(
        self, subject: Tensor, test: Callable[[], Tensor], complain: Callable[[], None]
    ) -> None:
        """Complain if a test of a tensor's values is true, now or in :meth:`settle`.

        Args:
            subject: the tensor.
            test: returns a 0-d bool tensor on the device of ``subject``, without reading values.
            complain: raises or warns; it may read values.
        """
        if host.at_hand(subject):
            if bool(test()):
                complain()
        elif not self.capturing:
            self._pending.append((test(), complain))

    def settle(self) -> None:
        """Read what the tests on the device found; complain in the order of the tests."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        found = host.read_flags([flag for flag, _ in pending])
        for is_found, (_, complain) in zip(found, pending, strict=True):
            if is_found:
                complain()


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called the package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _is_ours(frame.f_globals):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_ours(names: dict[str, object]) -> bool:
    return str(names.get("__name__", "")).partition(".")[0] == __name__.partition(".")[0]
