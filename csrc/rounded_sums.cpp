#include "rounded_sums.h"

#include "workspace.h"
#if !defined(RAPKERNELS_EMULATED)
#include "cpu/rounded_weight.h"
#endif

namespace rapkernels {

#if defined(RAPKERNELS_EMULATED)

Tensor rounded_negative_sums(const Tensor&, const Tensor&, const ConvShape&) { return {}; }

#else

namespace {

// In the layout of the activations, which the library would copy it to.
Tensor rounded_negative(const Tensor& weight, const ConvShape& conv) {
  Tensor negative = workspace_empty(
      weight.sizes(), weight.options().dtype(at::kBFloat16).memory_format(conv.format));
  const auto four = [](at::IntArrayRef v) {
    return std::array<int64_t, 4>{v[0], v[1], v[2], v[3]};
  };
  cpu::round_negative_weight(weight.const_data_ptr<float>(), four(weight.sizes()),
                             four(weight.strides()), negative.mutable_data_ptr<at::BFloat16>());
  return negative;
}

}  // namespace

Tensor rounded_negative_sums(const Tensor& x, const Tensor& weight, const ConvShape& conv) {
  const Tensor rounded =
      workspace_empty(x.sizes(), x.options().dtype(at::kBFloat16).memory_format(conv.format));
  return convolve(rounded.copy_(x), rounded_negative(weight, conv), conv);
}

#endif

}  // namespace rapkernels
