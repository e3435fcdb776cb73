"""The small VGG that reads digits, trained once in a session, for whichever test needs it."""

from __future__ import annotations

from functools import lru_cache

from bench.digits import Trained, train


@lru_cache(maxsize=1)
def trained_digits() -> Trained:
    """About a minute on two cores the first time."""
    return train()
