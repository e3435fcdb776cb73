"""What this library promises: how right a result must be, and what it may cost."""

from __future__ import annotations

import math
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
    """The most that RAP may cost on one network at one batch; None where nothing is promised.

    forwards, bf16_forwards: forward passes of a call, in float32 and with precision="bf16".
    further_target, bf16_further_target: likewise, of each target after the first.
    memory_gb: above the loaded model, in GB of 1e9 bytes.
    """

    forwards: float | None = None
    memory_gb: float | None = None
    further_target: float | None = None
    bf16_forwards: float | None = None
    bf16_further_target: float | None = None


TOLERANCE = Tolerance()
# Methods that lose more in float32. The figures are the worst of one sample of VGG-16 and
# EfficientNet-Lite0 and four of ResNet-50; a few samples do not show the worst there is, so the
# bounds are several times that.
TOLERANCES = {
    # Max pools choose the other one of two nearly equal inputs as in RAP, and a map of one sign, or
    # nearly, has entries that are much of the whole. Largest error 5e-3, 1 - cosine 8e-7.
    "one sign": Tolerance(max_error=5e-2),
    # Relevance over an output that may be nearly 0, whose relative error is unbounded, and residual
    # adds in proportion: on ResNet-50 |R| comes to 170 times its sum. 4e-2, 3e-4.
    "ratio": Tolerance(cosine=0.995, max_error=0.3, total_error=1e-2),
    # Where classes nearly tie, rounding decides whether an entry is cut to 0 or keeps a third of
    # its value. 1e-1, 2e-5.
    "cut": Tolerance(cosine=0.999, max_error=0.5),
    # A residual add in proportion, a / (a + b), has no bound where its branches cancel, and the
    # next multiplies what it left: docs/precision.md has a cosine of 0.78 for LRP on ViT-B/16 in
    # float32, by the reference too. This only tells right results from wrong ones.
    "branches": Tolerance(cosine=0.8, max_error=math.inf, total_error=0.1),
    # Operands are rounded to 8 bits: single entries are off by several of these, sums of them too,
    # and max pools choose other inputs. What is promised is the direction of the map.
    "bf16": Tolerance(
        cosine=0.9999, max_error=math.inf, total_error=math.inf, conservation=math.inf
    ),
}
# Networks that add many branches, where methods that share them in proportion have the tolerance
# of that name.
BRANCHES = ("convnext_tiny", "vit_b_16")
# Of the float64 reference itself, which everything else is measured against.
TRUTH_CONSERVATION = 1e-12
# By network and batch.
COST_LIMITS = {
    ("vgg16", 1): CostLimit(forwards=5.0),
    ("vgg16", 4): CostLimit(3.7, 0.6, 1.9, bf16_forwards=2.6, bf16_further_target=1.2),
    ("resnet50", 4): CostLimit(4.5, 0.6, bf16_forwards=3.5),
    ("efficientnet_lite0", 16): CostLimit(forwards=6.0),
}
# A method of this library, and those that it must be faster than in the same run, on every network
# and at every batch, where they run.
FASTER = {
    "rap": ("zennit_epsilon_plus_flat", "zennit_epsilon_alpha2_beta1", "rap_reference"),
    "lrp_epsilon": ("captum_lrp", "autolrp"),
}
# A run whose unit has a larger interquartile range than this share of its median proves nothing.
STEADY = 0.1
# An op on its own in float32, relative to the largest entry of the float64 reference.
OP_MAX_ERROR = 1e-5


@dataclass(frozen=True)
class GpuLimits:
    """What a GPU run must show.

    float64_error, float32_error: an op against the reference, of the largest entry.
    cosine: a whole network in float32 (TF32 off) against float64.
    elementwise_share: of the copy bandwidth, the fused element-wise kernels.
    linear_share: likewise, fc6 of VGG-16 at small batch, counting two reads of its weight.
    forwards: cost of an attribution in forward passes of the same network and precision.
    times_zennit, times_reference: how many times faster than those.
    fused_forwards: as forwards, by the tensor-core convolutions, in bfloat16 and TF32; with a
        captured graph at batch 1 fused_graph_forwards, each further target fused_target_forwards.
    fused_share: of the matrix product in bfloat16, the forward kernel on 3x3 layers with
        fused_channels channels and more.
    """

    float64_error: float = 1e-9
    float32_error: float = 1e-4
    cosine: float = 0.99999
    elementwise_share: float = 0.85
    linear_share: float = 0.80
    forwards: float = 6.0
    times_zennit: float = 3.0
    times_reference: float = 4.0
    fused_forwards: float = 4.8
    fused_graph_forwards: float = 6.0
    fused_target_forwards: float = 2.0
    fused_share: float = 0.60
    fused_channels: int = 128
    repeats: int = 20
    batch: int = 64


GPU_LIMITS = GpuLimits()
# The worst that is still timed, by precision. TF32 and bfloat16 round the inputs of max pools, so
# that many windows choose another entry: there the bounds only tell right results from wrong ones.
GPU_TOLERANCES = {
    "float32": Tolerance(cosine=0.999, max_error=0.05, total_error=0.01),
    "tf32": Tolerance(cosine=0.9, max_error=math.inf, total_error=0.1),
    "bfloat16": Tolerance(cosine=0.5, max_error=math.inf, total_error=0.2),
}
