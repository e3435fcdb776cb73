// The relevance step of a convolution, for layers that are one in other words.
#pragma once

#include <string_view>

#include "state.h"

namespace rapkernels {

// As the op of this name, see rapkernels/reference.
State relprop_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& z,
                   const Tensor& relevance, OptionalTensor psi, OptionalTensor scale,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                   int64_t groups, std::string_view rule, bool nonnegative,
                   const OptionalTensor& bias, at::ArrayRef<double> parameters,
                   std::string_view precision);

}  // namespace rapkernels
