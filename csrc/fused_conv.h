// Convolution steps whose sums never leave the tensor cores' registers: csrc/cuda/split_conv.h on
// tensors. Off unless RAPKERNELS_FUSED_CONV says otherwise: they were not measured yet.
#pragma once

#include <functional>
#include <optional>

#include "convolution.h"
#include "quotient.h"

namespace rapkernels {

// "1": wherever they run. "auto": where they were faster than the library when a shape was first
// met, so that the bits of a result depend on a measurement.
enum class FusedConv { kOff, kOn, kAuto };
FusedConv fused_conv_asked_for();

// Whether a step runs there. x and weight are what the step works with, and `relevance` (T N, ...).
bool has_fused_conv(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                    const ConvShape& conv, const Rule& rule);

// For kAuto: whether it was faster on a step of this kind, if that is known.
std::optional<bool> was_fused_conv_faster(const Tensor& x, const Tensor& weight,
                                          const Tensor& relevance, const ConvShape& conv,
                                          bool nonnegative, at::ScalarType storage);

// The same, for which both `fused` and `library` are run where it is not known. While a CUDA graph
// is captured nothing can be measured: false.
bool is_fused_conv_faster(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                          const ConvShape& conv, bool nonnegative, at::ScalarType storage,
                          const std::function<void()>& fused, const std::function<void()>& library);

// The step: contributions of a relevance, and the `total` of its quotient.
Gated fused_conv(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                 const OptionalTensor& psi, const Outputs& outputs, const ConvShape& conv,
                 bool nonnegative, at::ScalarType storage, Tensor& total);

}  // namespace rapkernels
