// Both directions of a split convolution as products of the tensor cores: implicit GEMM over
// channels-last tensors, in which each weight is loaded once and its two parts are formed in
// registers. See README.md.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace rapkernels::cuda {

// Result y and position k of the kernel meet source y stride + k dilation - padding.
struct SplitAxis {
  int32_t size;     // of x
  int32_t results;  // of z
  int32_t kernel;
  int32_t stride;
  int32_t dilation;
  int32_t padding;
};

struct SplitConv {
  int64_t samples;  // of x
  int64_t targets;  // the relevance has targets * samples samples
  int32_t groups;
  int32_t inputs;   // channels of x in a group
  int32_t outputs;  // channels of z in a group
  SplitAxis axes[2];
};

// How the tensor cores multiply: bfloat16 and float16 as they are, float rounded to TF32 or by
// three products of TF32.
enum class Product { kBFloat16, kFloat16, kTF32, k3xTF32 };

// Whether the shape is covered, of entries of so many bytes; the weight is (groups * outputs,
// kernel..., inputs).
bool runs_split_conv(const SplitConv& conv, int64_t bytes);

// S+ and S- = rule(R, Z+, Z-) of Z+ and Z-, the two parts of the messages of x, which are not
// stored; S- follows S+. In: type of x and weight. T: type of R, S+ and S-.
template <typename In, typename T>
void split_conv_quotient(const SplitConv& conv, Product product, const In* x, const In* weight,
                         const T* relevance, const double* psi, const T* bias, T* parts,
                         double* total, const Rule& rule, bool nonnegative);

// C = x (T_{w+}(S+) + T_{|w-|}(S-)), for x < 0 with the two S exchanged.
template <typename T>
void split_conv_contribution(const SplitConv& conv, Product product, const T* parts,
                             const T* weight, const T* x, T* contribution, Statistics* statistics,
                             bool nonnegative);

}  // namespace rapkernels::cuda
