"""What this library promises: how right a result must be, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """The worst a float32 result may be against the float64 reference on the same network.

    cosine: least cosine similarity of a sample's maps.
    max_error: largest difference, relative to the reference's largest entry of that sample; in
        float32 a max pool may choose the other one of two nearly equal inputs.
    total_error: difference of a sample's totals, relative to its sum of absolute relevance.
    conservation: worst |sum in - sum out - absorbed| of a node, relative to its sum of |R|.
    """

    cosine: float = 0.9999
    max_error: float = 5e-3
    total_error: float = 1e-3
    conservation: float = 1e-5


@dataclass(frozen=True)
class CostLimit:
    """The most a call may cost, in forward passes and in GB above the loaded model."""

    batch: int
    forwards: float
    memory_gb: float


TOLERANCE = Tolerance()
# Of the float64 reference itself, which everything else is measured against.
TRUTH_CONSERVATION = 1e-12
COST_LIMITS = {"vgg16": CostLimit(4, 5.0, 1.2), "resnet50": CostLimit(4, 7.0, 1.2)}
# A run whose unit has a larger interquartile range than this share of its median proves nothing.
STEADY = 0.1
# An op on its own in float32, relative to the largest entry of the float64 reference.
OP_MAX_ERROR = 1e-5
