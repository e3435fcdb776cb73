// The relevance step of Attribution Equilibrium, of a convolution and of a linear layer. Its three
// terms are one convolution with |w| on inputs stacked along the batch, and one transposed
// convolution of stacked quotients; what depends on x alone is computed once for all targets.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "convolution.h"
#include "device.h"
#include "matrix_product.h"
#include "state.h"
#include "targets.h"

namespace rapkernels {
namespace {

constexpr const char* kConv = "relprop_equilibrium_conv";
constexpr const char* kLinear = "relprop_equilibrium_linear";

constexpr int64_t kTerms = 3;

// Elements of the largest stacked temporary of a chunk of targets, unless one target needs more.
constexpr int64_t kStacked = int64_t{1} << 22;

// Operands in the working type, dense in `format`, with relevance of all targets.
struct Incoming {
  Tensor x;
  Tensor relevance;
  OptionalTensor psi;
  OptionalTensor scale;
  at::MemoryFormat format;

  int64_t inputs() const { return x.size(0); }
  int64_t samples() const { return relevance.size(0); }

  Tensor empty(const Tensor& like, int64_t samples) const {
    auto shape = like.sizes().vec();
    shape[0] = samples;
    return at::empty(shape, like.options().memory_format(format));
  }
};

// A linear or convolution layer by |w|: forward and back, without bias.
struct Layer {
  std::function<Tensor(const Tensor&)> forward;
  std::function<Tensor(const Tensor&)> transposed;
};

TargetShape shape_of(const Incoming& in, const Tensor& like, int64_t samples) {
  return {samples, in.inputs(), like.numel() / std::max<int64_t>(1, like.size(0))};
}

SignedSums* sums_data(const Tensor& sums, int64_t first = 0) {
  return reinterpret_cast<SignedSums*>(sums.mutable_data_ptr<double>()) + first;
}

const double* from(const OptionalTensor& t, int64_t first) {
  return t ? t->const_data_ptr<double>() + first : nullptr;
}

Tensor stacked_neurons(const Incoming& in) {
  const Tensor stacked = in.empty(in.x, kTerms * in.inputs());
  RAPKERNELS_DISPATCH(in.x, "neurons", [&] {
    device::neurons(in.x.const_data_ptr<scalar_t>(), stacked.mutable_data_ptr<scalar_t>(),
                    in.x.numel());
  });
  return stacked;
}

// (T*N, 4): the SignedSums of each sample.
Tensor signed_sums(const Incoming& in) {
  const Tensor sums = at::empty({in.samples(), 4}, in.relevance.options().dtype(at::kDouble));
  RAPKERNELS_DISPATCH(in.relevance, "signed_sums", [&] {
    device::signed_sums(in.relevance.const_data_ptr<scalar_t>(), data_or_null(in.psi),
                        sums_data(sums), in.samples(),
                        shape_of(in, in.relevance, in.samples()).size);
  });
  return sums;
}

// Writes values and absorbed of samples [first, first + samples), which are those of whole targets.
void propagate(const Incoming& in, const Layer& layer, const Tensor& messages, const Tensor& sums,
               const std::optional<double>& ratio, int64_t first, int64_t samples,
               const Tensor& values, const Tensor& absorbed) {
  const Tensor quotients = in.empty(in.relevance, kTerms * samples);
  const Tensor met = at::empty({samples}, absorbed.options());
  const TargetShape outputs = shape_of(in, in.relevance, samples);
  RAPKERNELS_DISPATCH(in.x, "equilibrium_quotient", [&] {
    device::equilibrium_quotient(messages.const_data_ptr<scalar_t>(),
                                 in.relevance.const_data_ptr<scalar_t>() + first * outputs.size,
                                 from(in.psi, first), sums_data(sums, first), ratio.value_or(1.0),
                                 quotients.mutable_data_ptr<scalar_t>(),
                                 met.mutable_data_ptr<double>(), outputs);
  });
  const Tensor gradients = layer.transposed(quotients);
  const Tensor psi = at::empty_like(met);
  OptionalTensor count;
  if (ratio) count = at::empty_like(met);
  const TargetShape inputs = shape_of(in, in.x, samples);
  RAPKERNELS_DISPATCH(in.x, "equilibrium_contribution", [&] {
    const auto* x = in.x.const_data_ptr<scalar_t>();
    const auto* gradient = gradients.const_data_ptr<scalar_t>();
    if (count) device::count_hedged(x, gradient, count->mutable_data_ptr<double>(), inputs);
    device::settle_equilibrium(sums_data(sums, first), met.const_data_ptr<double>(),
                               data_or_null(count), from(in.scale, first),
                               psi.mutable_data_ptr<double>(),
                               absorbed.mutable_data_ptr<double>() + first, samples);
    device::equilibrium_contribution(x, gradient, psi.const_data_ptr<double>(),
                                     values.mutable_data_ptr<scalar_t>() + first * inputs.size,
                                     inputs);
  });
}

// `ratio`: none for the balanced rule, which has no shift.
State equilibrium(const Incoming& in, const Layer& layer, const std::optional<double>& ratio,
                  at::ScalarType storage) {
  const Tensor sums = signed_sums(in);
  if (in.x.numel() == 0 || in.relevance.numel() == 0) {
    const Tensor none = in.empty(in.x, in.samples()).zero_().to(storage);
    const Tensor total = sums.narrow(1, 0, 2).sum(1);
    return settle_complete(none, in.scale ? total * *in.scale : total, std::nullopt, storage);
  }
  const Tensor messages = layer.forward(stacked_neurons(in));
  const Tensor values = in.empty(in.x, in.samples());
  const Tensor absorbed = per_sample(in.relevance);
  const int64_t target = kTerms * std::max(in.x.numel(), messages.numel() / kTerms);
  const int64_t chunk = in.inputs() * std::max<int64_t>(1, kStacked / target);
  for (int64_t first = 0; first < in.samples(); first += chunk) {
    propagate(in, layer, messages, sums, ratio, first, std::min(chunk, in.samples() - first),
              values, absorbed);
  }
  // Evidence has no unit: the result does not depend on the scale of the relevance.
  return settle_complete(values, absorbed, std::nullopt, storage);
}

State relprop_equilibrium_linear(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                                 OptionalTensor psi, OptionalTensor scale) {
  check_linear(kLinear, x, weight, relevance);
  check_per_sample(kLinear, "psi", psi, relevance);
  check_per_sample(kLinear, "scale", scale, relevance);

  constexpr auto dense = at::MemoryFormat::Contiguous;
  const Incoming in{operand(x, dense), operand(relevance, dense), psi, scale, dense};
  const Tensor magnitude = operand(weight, dense).abs();
  const Layer layer{[&](const Tensor& t) { return matrix_product(t, magnitude); },
                    [&](const Tensor& t) { return matrix_product_transposed(t, magnitude); }};
  return equilibrium(in, layer, std::nullopt, x.scalar_type());
}

State relprop_equilibrium_conv(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                               OptionalTensor psi, OptionalTensor scale, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                               double ratio) {
  const ConvShape conv =
      check_convolution(kConv, x, weight, relevance, stride, padding, dilation, groups);
  check_per_sample(kConv, "psi", psi, relevance);
  check_per_sample(kConv, "scale", scale, relevance);
  TORCH_CHECK(std::isfinite(ratio), kConv, ": ratio must be finite, got ", ratio);

  const Incoming in{operand(x, conv.format), operand(relevance, conv.format), psi, scale,
                    conv.format};
  const Tensor magnitude = operand(weight, conv.format).abs();
  std::vector<int64_t> padded;
  const auto forward = [&](const Tensor& t) {
    const Tensor whole = pad_unequal(t, conv);
    padded = whole.sizes().vec();
    return convolve(whole, magnitude, conv);
  };
  const auto transposed = [&](const Tensor& s) {
    // Asked for its shape alone, on CUDA for that of a sample.
    padded[0] = runs_cuda_kernels(s) ? 1 : s.size(0);
    const Tensor like = at::empty(padded, s.options().memory_format(conv.format));
    return crop_unequal(convolve_transposed(s, magnitude, like, conv), conv);
  };
  const auto sizes = weight.sizes().slice(2);
  const bool pointwise = std::all_of(sizes.begin(), sizes.end(), [](int64_t k) { return k == 1; });
  return equilibrium(in, {forward, transposed}, pointwise ? std::nullopt : std::optional(ratio),
                     x.scalar_type());
}

}  // namespace

RAPKERNELS_REGISTER(m) {
  m.impl("relprop_equilibrium_linear", &relprop_equilibrium_linear);
  m.impl("relprop_equilibrium_conv", &relprop_equilibrium_conv);
}

}  // namespace rapkernels
