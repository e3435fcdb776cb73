// The relevance step of a 1-d, 2-d or 3-d convolution: RAP's (Eqs. 7-9 and the published conv rule)
// and the rules without shift.
// The convolutions are ATen's; the quotient and the gate around them are ours.
#include "relprop_conv.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <functional>
#include <memory>
#include <string>

#include "convolution.h"
#include "depthwise.h"
#include "device.h"
#include "fused_conv.h"
#include "quotient.h"
#include "rounded_sums.h"
#include "split_conv.h"
#include "state.h"
#include "targets.h"
#include "unsplit.h"
#include "workspace.h"

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

// Its own kernel lists the positive weights, which pays where each is used at many positions and
// each position meets several of a channel: products of matrices the library does as fast. Of one
// sample, so that its bits do not depend on the others.
constexpr int64_t kManyPositions = 196;

bool pays_to_list(const Tensor& weight, const Tensor& z) {
  const bool is_product = weight.numel() == weight.size(0) * weight.size(1);
  return !is_product && z.numel() / (z.size(0) * z.size(1)) >= kManyPositions;
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

// The stacked weights and the library's layout of them are four times the weight. Where that is
// more than the activations, input channels are done in this many slices.
constexpr int64_t kSlices = 4;
constexpr int64_t kSmallestSlice = 16;

int64_t channels_at_once(const Tensor& x, const Tensor& weight, const Tensor& z) {
  const int64_t channels = weight.size(1);
  const int64_t slice = (channels + kSlices - 1) / kSlices;
  return weight.numel() > x.numel() + z.numel() && slice >= kSmallestSlice ? slice : channels;
}

// Takes S+ and S-, packed in channels, to the inputs of one sign.
using Transpose = std::function<Tensor(const Tensor& packed)>;

Transpose transpose_of(const Tensor& x, const Tensor& weight, const Tensor& z,
                       const ConvShape& conv, bool positive_first) {
  const int64_t channels = weight.size(1);
  const int64_t slice = channels_at_once(x, weight, z);
  if (slice == channels) {
    const Tensor both = stacked(weight, conv.format, positive_first);
    return [=](const Tensor& packed) { return convolve_transposed(packed, both, x, conv); };
  }
  return [=](const Tensor& packed) {
    auto shape = x.sizes().vec();
    shape[0] = packed.size(0);
    const Tensor out = at::empty(shape, x.options().memory_format(conv.format));
    for (int64_t begin = 0; begin < channels; begin += slice) {
      const int64_t size = std::min(slice, channels - begin);
      const Tensor part = weight.narrow(1, begin, size).contiguous(conv.format);
      const Tensor both = stacked(part, conv.format, positive_first);
      const Tensor of_x = x.narrow(1, begin, size);
      out.narrow(1, begin, size).copy_(convolve_transposed(packed, both, of_x, conv));
    }
    return out;
  };
}

struct Messages {
  Tensor first;
  Tensor second;
  Form form;
};

// In the layout of the activations, which the library would copy the weights to.
Tensor magnitude_of(const Tensor& t, const ConvShape& conv) {
  Tensor out = workspace_empty_like(t, conv.format);
  return at::abs_out(out, t);
}

Messages absolute_messages(const Tensor& x, const Tensor& weight, const OptionalTensor& z,
                           const ConvShape& conv, bool nonnegative) {
  const Tensor sum = z ? *z : convolve(x, weight, conv);
  if (nonnegative && pays_to_list(weight, sum) && has_split_conv(x, weight, conv)) {
    return {sum, split_conv_forward(x, weight, sum, conv), Form::kAbsolute};
  }
  return {sum, convolve(nonnegative ? x : magnitude_of(x, conv), magnitude_of(weight, conv), conv),
          Form::kAbsolute};
}

Messages rounded_messages(const Tensor& x, const Tensor& weight, const OptionalTensor& z,
                          const ConvShape& conv) {
  return {z ? *z : convolve(x, weight, conv), rounded_negative_sums(x, weight, conv),
          Form::kRounded};
}

Messages split_messages(const Tensor& x, const Tensor& plus, const Tensor& minus,
                        const ConvShape& conv, bool nonnegative) {
  if (nonnegative) return {convolve(x, plus, conv), convolve(x, minus, conv), Form::kSplit};
  const Tensor up = x.clamp_min(0);
  const Tensor down = x.neg().clamp_min_(0);
  return {convolve(up, plus, conv).add_(convolve(down, minus, conv)),
          convolve(up, minus, conv).add_(convolve(down, plus, conv)), Form::kSplit};
}

// A relevance (T N, ...), and unless undefined where its contributions may be written.
struct Incoming {
  Tensor relevance;
  OptionalTensor psi;
  Tensor room;
};

// The contributions of a relevance; `total` is that of its quotient.
using Step = std::function<Gated(const Incoming& incoming, Tensor& total)>;

// One transposed convolution of S+ and S- per sign of x: by the library, they are packed in one
// tensor's channels.
Step joint_step(const Tensor& x, const Tensor& weight, const Messages& m, const Outputs& outputs,
                const ConvShape& conv, bool nonnegative, bool own_kernel, bool rounds) {
  const auto send = [=](const Transposed& s) {
    return nonnegative ? gate(x, s.to_positive, std::nullopt, Gate::kProduct)
                       : gate(x, s.to_positive, s.to_negative, Gate::kBySign);
  };
  if (own_kernel) {
    return [=](const Incoming& incoming, Tensor& total) {
      const Parts s = quotient(m.first, m.second, incoming.relevance, incoming.psi, outputs, m.form,
                               Packing::kApart, conv.format, rounds);
      total = s.total;
      return send(
          split_conv_backward(s.positive, s.negative, weight, x, conv, nonnegative, incoming.room));
    };
  }
  const Transpose to_positive = transpose_of(x, weight, m.first, conv, true);
  const Transpose to_negative =
      nonnegative ? Transpose() : transpose_of(x, weight, m.first, conv, false);
  return [=](const Incoming& incoming, Tensor& total) {
    const Parts s = quotient(m.first, m.second, incoming.relevance, incoming.psi, outputs, m.form,
                             Packing::kChannels, conv.format);
    total = s.total;
    return send({to_positive(s.packed), nonnegative ? Tensor() : to_negative(s.packed)});
  };
}

// Grouped: S+ and S- apart, since packing would mix the groups.
Step grouped_step(const Tensor& x, const Tensor& plus, const Tensor& minus, const Messages& m,
                  const Outputs& outputs, const ConvShape& conv, bool nonnegative) {
  return [=](const Incoming& incoming, Tensor& total) {
    const Parts s = quotient(m.first, m.second, incoming.relevance, incoming.psi, outputs, m.form,
                             Packing::kApart, conv.format);
    total = s.total;
    Tensor up = convolve_transposed(s.positive, plus, x, conv);
    if (nonnegative) {
      return gate(x, up, convolve_transposed(s.negative, minus, x, conv), Gate::kSum);
    }
    up = up.add_(convolve_transposed(s.negative, minus, x, conv));
    const Tensor down = convolve_transposed(s.positive, minus, x, conv)
                            .add_(convolve_transposed(s.negative, plus, x, conv));
    return gate(x, up, down, Gate::kBySign);
  };
}

// One filter for each channel.
Step depthwise_step(const Tensor& x, const Tensor& weight, const Outputs& outputs,
                    const ConvShape& conv) {
  const auto sums = depthwise_sums(x, weight, conv);
  return [=](const Incoming& incoming, Tensor& total) {
    const Parts s = quotient(sums.first, sums.second, incoming.relevance, incoming.psi, outputs,
                             Form::kSplit, Packing::kApart, conv.format);
    total = s.total;
    return depthwise_contribution(x, weight, s, conv);
  };
}

// By the tensor cores, where RAPKERNELS_FUSED_CONV leaves it open only if that is faster.
Step fused_step(const Tensor& x, const Tensor& weight, const Outputs& outputs,
                const ConvShape& conv, bool nonnegative, at::ScalarType storage,
                const std::function<Step()>& library) {
  const Step own = [=](const Incoming& incoming, Tensor& total) {
    return fused_conv(x, weight, incoming.relevance, incoming.psi, outputs, conv, nonnegative,
                      storage, total);
  };
  if (fused_conv_asked_for() == FusedConv::kOn) return own;
  const auto prepared = std::make_shared<Step>();
  const Step other = [=](const Incoming& incoming, Tensor& total) {
    if (!*prepared) *prepared = library();
    return (*prepared)(incoming, total);
  };
  return [=](const Incoming& incoming, Tensor& total) {
    const auto once = [&](const Step& step) { return [&] { step(incoming, total); }; };
    const bool faster = is_fused_conv_faster(x, weight, incoming.relevance, conv, nonnegative,
                                             storage, once(own), once(other));
    return faster ? own(incoming, total) : other(incoming, total);
  };
}

// What does the products of a step that the tensor cores do not.
enum class Products { kLibrary, kSplitConv, kDepthwise };

Products products_of(const Tensor& x, const Tensor& w, const ConvShape& conv, const Rule& rule,
                     bool bfloat16) {
  if (is_unsplit(rule)) return Products::kLibrary;
  if (is_depthwise(x, w, conv)) return Products::kDepthwise;
  const bool own = has_split_conv(x, w, conv) || (bfloat16 && has_split_conv(x, w, conv, true));
  return own ? Products::kSplitConv : Products::kLibrary;
}

// What does not depend on the relevance is computed here, once for all targets.
Step prepare(const Tensor& x, const Tensor& w, const OptionalTensor& z, const Outputs& outputs,
             const ConvShape& conv, bool nonnegative, bool bfloat16) {
  if (is_unsplit(outputs.rule)) {
    const LinearOperator map{
        [=](const Tensor& in, const Tensor& part) { return convolve(in, part, conv); },
        [=](const Tensor& s, const Tensor& part) { return convolve_transposed(s, part, x, conv); }};
    const UnsplitStep step(map, x, w, z, outputs, nonnegative);
    return [step](const Incoming& incoming, Tensor& total) {
      return step(incoming.relevance, incoming.psi, total);
    };
  }
  const Products products = products_of(x, w, conv, outputs.rule, bfloat16);
  if (products == Products::kDepthwise) return depthwise_step(x, w, outputs, conv);
  const bool own = products == Products::kSplitConv;
  const bool rounds = own && bfloat16 && has_split_conv(x, w, conv, /*bfloat16=*/true);
  if (use_absolute_form(w, conv)) {
    const Messages m = rounds && nonnegative ? rounded_messages(x, w, z, conv)
                                             : absolute_messages(x, w, z, conv, nonnegative);
    return joint_step(x, w, m, outputs, conv, nonnegative, own, rounds);
  }
  const Tensor plus = at::empty_like(w);
  const Tensor minus = at::empty_like(w);
  split_weight(w, plus, minus);
  const Messages m = split_messages(x, plus, minus, conv, nonnegative);
  return conv.groups == 1 ? joint_step(x, w, m, outputs, conv, nonnegative, own, rounds)
                          : grouped_step(x, plus, minus, m, outputs, conv, nonnegative);
}

int64_t samples_at_once(const Tensor& x, const Tensor& relevance) {
  const int64_t samples = x.size(0);
  // Several targets share what is prepared for them.
  return relevance.size(0) > samples ? samples : parts_at_once(relevance, samples);
}

Tensor converted(const Tensor& t, const Rule& rule, at::MemoryFormat format) {
  return subtracts_sums(rule) ? accumulated(t, format) : operand(t, format);
}

// What a step works with: in its type and layout, x with the padding of one side.
struct Operands {
  Tensor x;
  Tensor weight;
  Tensor relevance;
};

Operands operands_of(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                     const ConvShape& conv, const Rule& rule) {
  const auto own = [&](const Tensor& t) { return converted(t, rule, conv.format); };
  const Tensor in = pad_unequal(own(x), conv);
  // Kernels of our own read the weight as it lies.
  const bool as_it_is = !is_unsplit(rule) && use_absolute_form(weight, conv) &&
                        weight.scalar_type() == in.scalar_type() &&
                        has_split_conv(in, weight, conv);
  return {in, as_it_is ? weight : own(weight), own(relevance)};
}

void check_precision(std::string_view precision) {
  TORCH_CHECK(precision == "fp32" || precision == "bf16", kOp,
              ": precision must be 'fp32' or 'bf16', got '", precision, "'");
}

}  // namespace

State relprop_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& z,
                   const Tensor& relevance, OptionalTensor psi, OptionalTensor scale,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                   int64_t groups, std::string_view rule, bool nonnegative,
                   const OptionalTensor& bias, at::ArrayRef<double> parameters,
                   std::string_view precision) {
  const ConvShape conv =
      check_convolution(kOp, x, weight, relevance, stride, padding, dilation, groups);
  check_per_sample(kOp, "psi", psi, relevance);
  check_per_sample(kOp, "scale", scale, relevance);
  if (z) {
    auto shape = relevance.sizes().vec();
    shape[0] = x.size(0);
    check_like(kOp, "z", *z, "x", x);
    check_shape(kOp, "z", *z, shape);
  }
  const Rule parsed = parse_rule(kOp, rule, parameters, bias, weight);
  check_precision(precision);
  const auto format = conv.format;
  if (x.numel() == 0 || relevance.numel() == 0) {
    auto shape = x.sizes().vec();
    shape[0] = relevance.size(0);
    const Tensor none = at::zeros(shape, x.options().memory_format(format));
    return {none, per_sample(none, 0), scale ? scale->clone() : per_sample(none, 1),
            per_sample(none, 0)};
  }

  const Operands given = operands_of(x, weight, relevance, conv, parsed);
  const Tensor& in = given.x;
  // z rounded to a narrow storage type is too coarse to subtract from A, or to add a bias to.
  const bool narrow = x.scalar_type() != in.scalar_type();
  OptionalTensor known;
  if (z && !narrow) known = converted(*z, parsed, format);
  const int64_t positions = relevance.numel() / (relevance.size(0) * relevance.size(1));
  Outputs outputs{parsed,
                  std::nullopt,
                  {relevance.size(1), format == at::MemoryFormat::Contiguous ? positions : 1}};
  if (bias && !parsed.shifts()) {
    outputs.bias = converted(*bias, parsed, at::MemoryFormat::Contiguous);
  }

  const Tensor& w = given.weight;
  const Tensor& all = given.relevance;
  const bool fused = has_fused_conv(in, w, all, conv, parsed);
  const int64_t samples = x.size(0);
  const int64_t at_once = samples_at_once(x, all);
  const auto part = [&](int64_t begin, const Tensor& room) {
    const int64_t length = std::min(at_once, samples - begin);
    const int64_t rows = at_once < samples ? length : all.size(0);
    const Tensor some = in.narrow(0, begin, length);
    const auto library = [&] {
      return prepare(some, w, narrow_samples(known, begin, length), outputs, conv, nonnegative,
                     precision == "bf16");
    };
    const Step step =
        !fused ? library()
               : fused_step(some, w, outputs, conv, nonnegative, x.scalar_type(), library);
    return for_target_chunks(
        x.narrow(0, begin, length), all.narrow(0, begin, rows), narrow_samples(psi, begin, rows),
        narrow_samples(scale, begin, rows), format, room,
        [&](const Tensor& incoming, const OptionalTensor& shift, const OptionalTensor& unit,
            const Tensor& to) {
          Tensor total;
          const Gated gated = step({incoming, shift, to}, total);
          // Padding holds zeros, so its contributions are zero and the statistics hold for the
          // crop.
          const Tensor values = crop_unequal(gated.values, conv);
          return settle_by_rule(parsed, values, gated.statistics, total, unit, x.scalar_type());
        });
  };
  if (at_once == samples) return part(0, {});
  JoinedState joined(x, samples, format);
  for (int64_t begin = 0; begin < samples; begin += at_once) {
    joined.append(part(begin, joined.room(std::min(at_once, samples - begin))));
  }
  return joined.state();
}

std::string relprop_conv_kernel(const Tensor& x, const Tensor& weight, const OptionalTensor&,
                                const Tensor& relevance, const OptionalTensor&,
                                const OptionalTensor&, at::IntArrayRef stride,
                                at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                                std::string_view rule, bool nonnegative, const OptionalTensor& bias,
                                at::ArrayRef<double> parameters, std::string_view precision) {
  const ConvShape conv =
      check_convolution(kOp, x, weight, relevance, stride, padding, dilation, groups);
  const Rule parsed = parse_rule(kOp, rule, parameters, bias, weight);
  check_precision(precision);
  const Operands given = operands_of(x, weight, relevance, conv, parsed);
  if (has_fused_conv(given.x, given.weight, given.relevance, conv, parsed)) {
    if (fused_conv_asked_for() == FusedConv::kOn) return "fused_conv";
    const int64_t at_once = std::min(samples_at_once(x, given.relevance), x.size(0));
    const int64_t rows = at_once < x.size(0) ? at_once : given.relevance.size(0);
    const auto faster = was_fused_conv_faster(given.x.narrow(0, 0, at_once), given.weight,
                                              given.relevance.narrow(0, 0, rows), conv, nonnegative,
                                              x.scalar_type());
    if (!faster) return "fused_conv or library";
    if (*faster) return "fused_conv";
  }
  switch (products_of(given.x, given.weight, conv, parsed, precision == "bf16")) {
    case Products::kSplitConv:
      return "split_conv";
    case Products::kDepthwise:
      return "depthwise";
    case Products::kLibrary:
      break;
  }
  return "library";
}

RAPKERNELS_REGISTER(m) { m.impl("relprop_conv", &relprop_conv); }

RAPKERNELS_REGISTER_FOR_ALL(m) { m.impl("relprop_conv_kernel", &relprop_conv_kernel); }

}  // namespace rapkernels
