// The element-wise halves of a relevance step on tensors: the fused quotient and the fused gate.
#pragma once

#include "state.h"

namespace rapkernels {

// Where S+ and S- go: two tensors, or the two halves of one tensor's channels, which a single
// transposed convolution with the weights [w+; |w-|] reads.
enum class Packing { kApart, kChannels };

// A rule with what it needs to know of the outputs; bias in the working type, dense.
struct Outputs {
  Rule rule;
  OptionalTensor bias;
  Channels channels;
};

// Whether the rule divides by differences of sums, which a narrow working type has too coarse.
inline bool subtracts_sums(const Rule& rule) {
  return rule.kind == Rule::kEpsilon || rule.kind == Rule::kGamma;
}

struct Parts {
  Tensor positive;
  Tensor negative;
  Tensor packed;  // (T N, 2 C, ...) for Packing::kChannels, (2, T N, C, ...) for Packing::kApart
  Tensor total;   // (T N,) float64, before scale: the relevance that came in, or what was absorbed
                  // for a rule without shift
};

// All operands dense in `format` and of one working type, but for the bfloat16 of Form::kRounded,
// which asks for `bfloat16`; `first`, `second` (N, ...) as Form says, relevance (T N, ...). S+ and
// S- are of that type, or with `bfloat16`, for float on the CPU alone, rounded to it.
Parts quotient(const Tensor& first, const Tensor& second, const Tensor& relevance,
               const OptionalTensor& psi, const Outputs& outputs, Form form, Packing packing,
               at::MemoryFormat format, bool bfloat16 = false);

struct Part {
  Tensor s;
  Tensor total;  // (T N,) float64, before scale: what was absorbed
};

// S = factor R / stab(z + bias), for the rules that need one sum z of each output.
Part unsplit_quotient(const Tensor& z, const Tensor& relevance, const OptionalTensor& psi,
                      const OptionalTensor& bias, const Channels& channels, double factor,
                      double stabilizer);

struct Gated {
  Tensor values;
  Tensor statistics;
};

// x (N, ...), the gradients (T N, ...); the contribution is written into the memory of `room`, or
// where that is undefined of `first`.
Gated gate(const Tensor& x, const Tensor& first, const OptionalTensor& second, Gate form,
           const Tensor& room = {});

// Settles what a layer's rule gave, by the `total` of its quotient.
State settle_by_rule(const Rule& rule, const Tensor& contribution, const Tensor& statistics,
                     const Tensor& total, const OptionalTensor& scale, at::ScalarType storage);

}  // namespace rapkernels
