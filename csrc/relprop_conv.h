// The relevance step of a convolution, for layers that are one in other words.
#pragma once

#include <string>
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

// What would do the products of its step: "split_conv", "depthwise" or "fused_conv", the files of
// kernels of our own, or "library"; "fused_conv or library" where the faster is still to be found.
// No entry of a tensor is read.
std::string relprop_conv_kernel(const Tensor& x, const Tensor& weight, const OptionalTensor& z,
                                const Tensor& relevance, const OptionalTensor& psi,
                                const OptionalTensor& scale, at::IntArrayRef stride,
                                at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                                std::string_view rule, bool nonnegative, const OptionalTensor& bias,
                                at::ArrayRef<double> parameters, std::string_view precision);

}  // namespace rapkernels
