// Convolution steps whose sums never leave the tensor cores' registers: csrc/cuda/split_conv.h on
// tensors. Off unless RAPKERNELS_FUSED_CONV is 1: they were not measured yet.
#pragma once

#include "convolution.h"
#include "quotient.h"

namespace rapkernels {

// Whether RAPKERNELS_FUSED_CONV asks for them.
bool asks_for_fused_conv();

// Whether a step runs there. x and weight are what the step works with, and `relevance` (T N, ...).
bool has_fused_conv(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                    const ConvShape& conv, const Rule& rule);

// The step: contributions of a relevance, and the `total` of its quotient.
Gated fused_conv(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                 const OptionalTensor& psi, const Outputs& outputs, const ConvShape& conv,
                 bool nonnegative, at::ScalarType storage, Tensor& total);

}  // namespace rapkernels
