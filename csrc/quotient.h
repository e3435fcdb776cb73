// The element-wise halves of a relevance step on tensors: the fused quotient and the fused gate.
#pragma once

#include "state.h"

namespace rapkernels {

// Where S+ and S- go: two tensors, or the two halves of one tensor's channels, which a single
// transposed convolution with the weights [w+; |w-|] reads.
enum class Packing { kApart, kChannels };

struct Parts {
  Tensor positive;
  Tensor negative;
  Tensor packed;  // (N, 2 C, ...) for Packing::kChannels
  Tensor total;   // (N,) float64: the relevance that came in, before scale
};

// All operands dense in `format`, of one shape and working type. `first`, `second` as Form says.
Parts quotient(const Tensor& first, const Tensor& second, const Tensor& relevance,
               const OptionalTensor& psi, Rule rule, Form form, Packing packing,
               at::MemoryFormat format);

struct Gated {
  Tensor values;
  Tensor statistics;
};

// The contribution is written into the memory of `first`.
Gated gate(const Tensor& x, const Tensor& first, const OptionalTensor& second, Gate form);

}  // namespace rapkernels
