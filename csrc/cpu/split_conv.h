// The passes of a split convolution on the CPU by kernels that multiply each weight once: w+ and w-
// have no entry in common, so that one of a message's two parts is zero. Tensors are channels-last.
#pragma once

#include <c10/util/BFloat16.h>

#include <array>
#include <cstdint>

namespace rapkernels::cpu {

// Result y and position k of the kernel meet source y step + k dilation - low.
struct SplitAxis {
  int64_t size;     // of x
  int64_t results;  // of z
  int64_t kernel;
  int64_t step;
  int64_t dilation;
  int64_t low;  // zeros before the first source
};

struct SplitConv {
  int64_t inputs;   // channels of x
  int64_t outputs;  // channels of z
  std::array<SplitAxis, 2> axes;
  const float* weight;
  std::array<int64_t, 4> strides;  // of the weight: output, input, row, column
};

// Whether this processor has the instructions, those for bfloat16 included, and whether the
// channels fill its registers.
bool runs_split_conv(const SplitConv& conv, bool bfloat16);

// Whether split_conv_sums and split_conv_positive_transposed run: with any number of channels.
bool runs_split_zbox(const SplitConv& conv);

// A = |w| * x of x >= 0 (N, inputs, ...) whose z (N, outputs, ...) is known, as 2 w+ * x - z.
void split_conv_forward(const SplitConv& conv, const float* x, const float* z, int64_t samples,
                        float* a);

// z = w+ * up + |w-| * down of the parts (N, inputs, ...) of an input layer.
void split_conv_sums(const SplitConv& conv, const float* up, const float* down, int64_t samples,
                     float* z);

// T_{w+}(s) (N, inputs, ...) of s (N, outputs, ...).
void split_conv_positive_transposed(const SplitConv& conv, const float* s, int64_t samples,
                                    float* out);

// S+ and S- (N, outputs, ...) of a type S: float, or bfloat16, to which w is then rounded.
// to_positive (N, inputs, ...) is T_{w+}(S+) + T_{|w-|}(S-), to_negative, unless null,
// T_{|w-|}(S+) + T_{w+}(S-).
template <typename S>
void split_conv_backward(const SplitConv& conv, const S* positive, const S* negative,
                         int64_t samples, float* to_positive, float* to_negative);

}  // namespace rapkernels::cpu
