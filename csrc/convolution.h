// ATen's convolutions as the linear maps C_W and T_W of the contribution algebra.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "checks.h"

namespace rapkernels {

struct ConvShape {
  at::MemoryFormat format;  // of every tensor of the step: that of x
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;  // what both sides of a dimension have
  std::vector<int64_t> dilation;
  int64_t groups;
  std::vector<int64_t> low;   // what the low side has beyond that
  std::vector<int64_t> high;  // what the high side has beyond that
};

// Checks shapes and dtypes; `padding` holds (low, high) for each spatial dimension, the first
// first.
ConvShape check_convolution(const char* op, const Tensor& x, const Tensor& weight,
                            const Tensor& relevance, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// x with the padding that only one side has, and back.
Tensor pad_unequal(const Tensor& x, const ConvShape& conv);
Tensor crop_unequal(const Tensor& x, const ConvShape& conv);

// C_W(x), no bias.
Tensor convolve(const Tensor& x, const Tensor& weight, const ConvShape& conv);

// Whether a convolution of x keeps the precision of its type: not where torch allows TF32.
bool is_full_precision(const Tensor& x);

// T_W(s): the adjoint of C_W, shaped like x but for its samples, which are those of s.
Tensor convolve_transposed(const Tensor& s, const Tensor& weight, const Tensor& x,
                           const ConvShape& conv);

}  // namespace rapkernels
