"""RAP in plain, differentiable PyTorch: what the native operations must equal.

Every function has the signature and the result of the operation of the same name in
``rapkernels.ops`` and is written for reading, not for speed: positive and negative messages are
kept apart (the split form), nothing is fused. float16 and bfloat16 are computed in float32.
Equation numbers are those of Nam et al., "Relative Attributing Propagation", AAAI 2020.
"""

from rapkernels.reference._contribution import (
    gate,
    linear_split,
    relprop_conv,
    relprop_linear,
    split_quotient,
)
from rapkernels.reference._equilibrium import relprop_equilibrium_conv, relprop_equilibrium_linear
from rapkernels.reference._first_step import relprop_first_linear
from rapkernels.reference._input_layer import relprop_zbox_conv, relprop_zbox_linear
from rapkernels.reference._junctions import apply_shift, merge, relprop_add
from rapkernels.reference._pooling import (
    relprop_adaptive_avg_pool,
    relprop_adaptive_max_pool,
    relprop_avg_pool,
    relprop_max_pool,
)
from rapkernels.reference._sharing import (
    relprop_sharing_conv,
    relprop_sharing_linear,
    share_squares,
)

__all__ = [
    "apply_shift",
    "gate",
    "linear_split",
    "merge",
    "relprop_adaptive_avg_pool",
    "relprop_adaptive_max_pool",
    "relprop_add",
    "relprop_avg_pool",
    "relprop_conv",
    "relprop_equilibrium_conv",
    "relprop_equilibrium_linear",
    "relprop_first_linear",
    "relprop_linear",
    "relprop_max_pool",
    "relprop_sharing_conv",
    "relprop_sharing_linear",
    "relprop_zbox_conv",
    "relprop_zbox_linear",
    "share_squares",
    "split_quotient",
]
