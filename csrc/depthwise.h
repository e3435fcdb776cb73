// Depthwise convolutions, one filter for each channel, by kernels of our own on the CPU.
#pragma once

#include "convolution.h"
#include "quotient.h"

namespace rapkernels {

// Whether they do this convolution: 2-d, channels-last, as many outputs as inputs.
bool is_depthwise(const Tensor& x, const Tensor& weight, const ConvShape& conv);

// Z+ and Z- in one pass; x and weight in the working type, x dense in conv.format.
std::pair<Tensor, Tensor> depthwise_sums(const Tensor& x, const Tensor& weight,
                                         const ConvShape& conv);

// The contributions that S+ and S- of the outputs make, in one pass.
Gated depthwise_contribution(const Tensor& x, const Tensor& weight, const Parts& s,
                             const ConvShape& conv);

}  // namespace rapkernels
