// RAP's relevance step of a 1-d, 2-d or 3-d convolution (Eqs. 7-9 and the published conv rule).
// The convolutions are ATen's; the quotient and the gate around them are ours.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include "convolution.h"
#include "device.h"
#include "quotient.h"
#include "state.h"

namespace rapkernels {
namespace {

constexpr const char* kOp = "relprop_conv";

// The absolute form saves the forward a convolution where the sums are long; on short sums
// (depthwise) its cancellation is felt in float32, and the split form costs little. It needs sums
// in full precision: A - |z| would be TF32's or bfloat16's rounding. The backward is always split:
// a contribution that is exactly zero must come out as zero, or it counts as active.
constexpr int64_t kShortSum = 64;

bool use_absolute_form(const Tensor& weight, const ConvShape& conv) {
  return conv.groups == 1 && is_full_precision(weight) &&
         weight.numel() / std::max<int64_t>(1, weight.size(0)) >= kShortSum;
}

void split_weight(const Tensor& weight, const Tensor& positive, const Tensor& negative) {
  RAPKERNELS_DISPATCH(weight, "split_weight", [&] {
    device::split_weight(weight.const_data_ptr<scalar_t>(), positive.mutable_data_ptr<scalar_t>(),
                         negative.mutable_data_ptr<scalar_t>(), weight.numel());
  });
}

// The weights that take S+ and S- to the inputs of one sign: w+ and |w-| stacked along the outputs.
Tensor stacked(const Tensor& weight, at::MemoryFormat format, bool positive_first) {
  auto shape = weight.sizes().vec();
  const int64_t outputs = shape[0];
  shape[0] = 2 * outputs;
  const Tensor both = at::empty(shape, weight.options().memory_format(format));
  split_weight(weight, both.narrow(0, positive_first ? 0 : outputs, outputs),
               both.narrow(0, positive_first ? outputs : 0, outputs));
  return both;
}

struct Messages {
  Tensor first;
  Tensor second;
  Form form;
};

Messages absolute_messages(const Tensor& x, const Tensor& weight, const OptionalTensor& z,
                           const ConvShape& conv, bool nonnegative) {
  const Tensor absolute = convolve(nonnegative ? x : x.abs(), weight.abs(), conv);
  return {z ? *z : convolve(x, weight, conv), absolute, Form::kAbsolute};
}

Messages split_messages(const Tensor& x, const Tensor& plus, const Tensor& minus,
                        const ConvShape& conv, bool nonnegative) {
  if (nonnegative) return {convolve(x, plus, conv), convolve(x, minus, conv), Form::kSplit};
  const Tensor up = x.clamp_min(0);
  const Tensor down = x.neg().clamp_min_(0);
  return {convolve(up, plus, conv).add_(convolve(down, minus, conv)),
          convolve(up, minus, conv).add_(convolve(down, plus, conv)), Form::kSplit};
}

// S+ and S- packed in one tensor's channels: one transposed convolution per sign of x.
Gated packed_step(const Tensor& x, const Tensor& weight, const Messages& m, const Tensor& relevance,
                  const OptionalTensor& psi, Rule rule, const ConvShape& conv, bool nonnegative,
                  Tensor& total) {
  Parts s =
      quotient(m.first, m.second, relevance, psi, rule, m.form, Packing::kChannels, conv.format);
  total = s.total;
  const Tensor up = convolve_transposed(s.packed, stacked(weight, conv.format, true), x, conv);
  if (nonnegative) return gate(x, up, std::nullopt, Gate::kProduct);
  return gate(x, up, convolve_transposed(s.packed, stacked(weight, conv.format, false), x, conv),
              Gate::kBySign);
}

// Grouped: S+ and S- apart, since packing would mix the groups.
Gated grouped_step(const Tensor& x, const Tensor& plus, const Tensor& minus, const Messages& m,
                   const Tensor& relevance, const OptionalTensor& psi, Rule rule,
                   const ConvShape& conv, bool nonnegative, Tensor& total) {
  Parts s = quotient(m.first, m.second, relevance, psi, rule, m.form, Packing::kApart, conv.format);
  total = s.total;
  Tensor up = convolve_transposed(s.positive, plus, x, conv);
  if (nonnegative) {
    return gate(x, up, convolve_transposed(s.negative, minus, x, conv), Gate::kSum);
  }
  up = up.add_(convolve_transposed(s.negative, minus, x, conv));
  const Tensor down = convolve_transposed(s.positive, minus, x, conv)
                          .add_(convolve_transposed(s.negative, plus, x, conv));
  return gate(x, up, down, Gate::kBySign);
}

State relprop_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& z,
                   const Tensor& relevance, OptionalTensor psi, OptionalTensor scale,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                   int64_t groups, std::string_view rule, bool nonnegative) {
  ConvShape conv = check_convolution(kOp, x, weight, relevance, stride, padding, dilation, groups);
  check_per_sample(kOp, "psi", psi, x);
  check_per_sample(kOp, "scale", scale, x);
  if (z) {
    check_like(kOp, "z", *z, "x", x);
    check_shape(kOp, "z", *z, relevance.sizes());
  }
  const Rule parsed = parse_rule(kOp, rule);
  const auto format = conv.format;
  if (x.numel() == 0 || relevance.numel() == 0) {
    const Tensor none = at::zeros_like(x, x.options().memory_format(format));
    return {none, per_sample(x, 0), scale ? scale->clone() : per_sample(x, 1), per_sample(x, 0)};
  }

  const Tensor original = operand(x, format);
  const Tensor in = pad_unequal(original, conv);
  const Tensor w = operand(weight, format);
  const Tensor incoming = operand(relevance, format);
  // z rounded to a narrow storage type is too coarse to subtract from A.
  const bool narrow = x.scalar_type() != in.scalar_type();
  OptionalTensor known;
  if (z && !narrow) known = operand(*z, format);

  Tensor total;
  Gated gated;
  if (use_absolute_form(w, conv)) {
    const Messages m = absolute_messages(in, w, known, conv, nonnegative);
    gated = packed_step(in, w, m, incoming, psi, parsed, conv, nonnegative, total);
  } else {
    const Tensor plus = at::empty_like(w);
    const Tensor minus = at::empty_like(w);
    split_weight(w, plus, minus);
    const Messages m = split_messages(in, plus, minus, conv, nonnegative);
    gated = conv.groups == 1
                ? packed_step(in, w, m, incoming, psi, parsed, conv, nonnegative, total)
                : grouped_step(in, plus, minus, m, incoming, psi, parsed, conv, nonnegative, total);
  }
  // Padding holds zeros, so its contributions are zero and the statistics hold for the crop.
  const Tensor values = crop_unequal(gated.values, conv);
  return settle(values, gated.statistics, total, scale, x.scalar_type());
}

}  // namespace

RAPKERNELS_REGISTER(m) { m.impl("relprop_conv", &relprop_conv); }

}  // namespace rapkernels
