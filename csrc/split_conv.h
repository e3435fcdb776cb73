// Split convolutions by kernels of our own, where there are any for a device, type and shape.
#pragma once

#include "convolution.h"

namespace rapkernels {

// Whether there are; `bfloat16` asks for those that round to it.
bool has_split_conv(const Tensor& x, const Tensor& weight, const ConvShape& conv,
                    bool bfloat16 = false);

// A = |w| * x of x >= 0 whose z is known.
Tensor split_conv_forward(const Tensor& x, const Tensor& weight, const Tensor& z,
                          const ConvShape& conv);

// What S+ and S-, two dense tensors, send to inputs of either sign. In bfloat16, the weights are
// rounded to it.
struct Transposed {
  Tensor to_positive;
  Tensor to_negative;  // undefined where x has none
};
Transposed split_conv_backward(const Tensor& positive, const Tensor& negative, const Tensor& weight,
                               const Tensor& x, const ConvShape& conv, bool nonnegative,
                               const Tensor& room);

// Whether there are the two below, for any number of channels.
bool has_split_zbox(const Tensor& x, const Tensor& weight, const ConvShape& conv);

// C_{w+}(up) + C_{|w-|}(down).
Tensor split_conv_sums(const Tensor& up, const Tensor& down, const Tensor& weight,
                       const ConvShape& conv);

// T_{w+}(s), shaped like x but for its samples, which are those of s.
Tensor split_conv_positive_transposed(const Tensor& s, const Tensor& weight, const Tensor& x,
                                      const ConvShape& conv);

}  // namespace rapkernels
