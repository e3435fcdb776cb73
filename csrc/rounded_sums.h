// Sums of messages in bfloat16, which the library's convolutions add up twice as fast.
#pragma once

#include "convolution.h"

namespace rapkernels {

// Z- = |w-| * x of x >= 0, both rounded to bfloat16 and the result too; added up in float32. 2-d
// and float32, on the CPU.
Tensor rounded_negative_sums(const Tensor& x, const Tensor& weight, const ConvShape& conv);

}  // namespace rapkernels
