// The z-box step of the input layer (RAP Eq. 10), as the z+ rule on the extended input
// [x - l, x - h] with the weights [w+, w-]: every message is >= 0 for l <= x <= h, so that nothing
// cancels, and zero padding of the extended input is exactly the zero padding of l and h.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <functional>

#include "convolution.h"
#include "device.h"
#include "quotient.h"
#include "split_conv.h"
#include "state.h"
#include "targets.h"
#include "workspace.h"

namespace rapkernels {
namespace {

Part zbox(const Tensor& z, const Tensor& relevance, const OptionalTensor& psi, double stabilizer) {
  return unsplit_quotient(z, relevance, psi, std::nullopt, {}, /*factor=*/1, stabilizer);
}

Tensor finite(const Tensor& t) { return at::where(t.isfinite(), t, at::zeros_like(t)); }

void check_bounds(const char* op, const Tensor& x, const Tensor& low, const Tensor& high) {
  check_like(op, "low", low, "x", x);
  check_like(op, "high", high, "x", x);
  const auto broadcastable = [&](const Tensor& t) {
    if (t.dim() > x.dim()) return false;
    for (int64_t d = 1; d <= t.dim(); ++d) {
      if (t.size(-d) != 1 && t.size(-d) != x.size(-d)) return false;
    }
    return true;
  };
  TORCH_CHECK(broadcastable(low), op, ": low must broadcast to the shape of x ", x.sizes(),
              ", got ", low.sizes());
  TORCH_CHECK(broadcastable(high), op, ": high must broadcast to the shape of x ", x.sizes(),
              ", got ", high.sizes());
}

State relprop_zbox_linear(const Tensor& x, const Tensor& weight, const Tensor& low,
                          const Tensor& high, const Tensor& relevance, OptionalTensor psi,
                          OptionalTensor scale, double stabilizer) {
  constexpr const char* op = "relprop_zbox_linear";
  check_linear(op, x, weight, relevance);
  check_bounds(op, x, low, high);
  check_per_sample(op, "psi", psi, relevance);
  check_per_sample(op, "scale", scale, relevance);
  check_at_least_zero(op, "stabilizer", stabilizer);

  const auto dense = at::MemoryFormat::Contiguous;
  const int64_t inputs = weight.size(1);
  const Tensor in = accumulated(x, dense);
  const Tensor above = (in - accumulated(low, dense)).reshape({-1, inputs});
  const Tensor below = (in - accumulated(high, dense)).reshape({-1, inputs});
  const Tensor w = accumulated(weight, dense);
  const Tensor plus = w.clamp_min(0);
  const Tensor minus = w.clamp_max(0);
  const Tensor incoming = accumulated(relevance, dense);
  const Tensor z = at::mm(above, plus.t()).addmm_(below, minus.t());
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  const Part q = zbox(z.view(shape), incoming, psi, stabilizer);
  const Tensor s = q.s.view({-1, weight.size(0)});
  // The rows of x, once more for each target.
  const auto over_targets = [&](const Tensor& gradient) {
    return gradient.view({x.size(0) ? relevance.size(0) / x.size(0) : 1, above.size(0), inputs});
  };
  const Tensor values =
      finite(above * over_targets(at::mm(s, plus)) + below * over_targets(at::mm(s, minus)));
  shape = x.sizes().vec();
  shape[0] = relevance.size(0);
  return settle_complete(values.view(shape), q.total, scale, x.scalar_type());
}

// [x - l, x - h] or [w+, w-] along the input channels, group by group.
Tensor extended(const Tensor& first, const Tensor& second, int64_t groups) {
  if (groups == 1) return at::cat({first, second}, 1);
  auto split = first.sizes().vec();
  split[1] /= groups;
  split.insert(split.begin() + 1, groups);
  auto joined = first.sizes().vec();
  joined[1] *= 2;
  return at::cat({first.reshape(split), second.reshape(split)}, 2).reshape(joined);
}

// The sum of the two halves of the channels of each group.
Tensor folded(const Tensor& both, int64_t groups) {
  auto split = both.sizes().vec();
  split[1] /= 2 * groups;
  split.insert(split.begin() + 1, {groups, 2});
  auto joined = both.sizes().vec();
  joined[1] /= 2;
  return both.contiguous().view(split).sum(2).reshape(joined);
}

// The contributions of a relevance (T N, ...), not all finite; `total` is what was absorbed.
using Step =
    std::function<Tensor(const Tensor& relevance, const OptionalTensor& psi, Tensor& total)>;

// By kernels that multiply each weight once: x - l with w+, h - x with |w-|.
Step split_step(const Tensor& x, const Tensor& low, const Tensor& high, const Tensor& weight,
                const ConvShape& conv, double stabilizer) {
  const auto difference = [&](const Tensor& a, const Tensor& b) {
    Tensor out = workspace_empty(x.sizes(), x.options().memory_format(conv.format));
    return pad_unequal(at::sub_out(out, a, b), conv);
  };
  const Tensor up = difference(x, low);
  const Tensor down = difference(high, x);
  const Tensor z = split_conv_sums(up, down, weight, conv);
  const Tensor opposite = weight.neg();
  return [=](const Tensor& relevance, const OptionalTensor& psi, Tensor& total) {
    const Part q = zbox(z, relevance, psi, stabilizer);
    total = q.total;
    const auto send = [&](const Tensor& part, const Tensor& w) {
      Tensor messages = split_conv_positive_transposed(q.s, w, part, conv);
      messages.unflatten(0, {-1, x.size(0)}).mul_(part);
      return messages;
    };
    return crop_unequal(send(up, weight).add_(send(down, opposite)), conv);
  };
}

// By the library, on the extended input.
Step extended_step(const Tensor& x, const Tensor& low, const Tensor& high, const Tensor& weight,
                   const ConvShape& conv, double stabilizer) {
  const Tensor both =
      pad_unequal(extended(x - low, x - high, conv.groups).contiguous(conv.format), conv);
  const Tensor weights =
      extended(weight.clamp_min(0), weight.clamp_max(0), 1).contiguous(conv.format);
  const Tensor z = convolve(both, weights, conv);
  return [=](const Tensor& relevance, const OptionalTensor& psi, Tensor& total) {
    const Part q = zbox(z, relevance, psi, stabilizer);
    total = q.total;
    const Tensor messages = convolve_transposed(q.s, weights, both, conv);
    messages.unflatten(0, {-1, x.size(0)}).mul_(both);
    return folded(crop_unequal(messages, conv), conv.groups);
  };
}

State relprop_zbox_conv(const Tensor& x, const Tensor& weight, const Tensor& low,
                        const Tensor& high, const Tensor& relevance, OptionalTensor psi,
                        OptionalTensor scale, at::IntArrayRef stride, at::IntArrayRef padding,
                        at::IntArrayRef dilation, int64_t groups, double stabilizer) {
  constexpr const char* op = "relprop_zbox_conv";
  const ConvShape conv =
      check_convolution(op, x, weight, relevance, stride, padding, dilation, groups);
  check_bounds(op, x, low, high);
  check_per_sample(op, "psi", psi, relevance);
  check_per_sample(op, "scale", scale, relevance);
  check_at_least_zero(op, "stabilizer", stabilizer);
  const auto format = conv.format;
  if (x.numel() == 0 || relevance.numel() == 0) {
    auto shape = x.sizes().vec();
    shape[0] = relevance.size(0);
    const Tensor none = at::zeros(shape, x.options().memory_format(format));
    return {none, per_sample(none, 0), scale ? scale->clone() : per_sample(none, 1),
            per_sample(none, 0)};
  }

  const Tensor in = accumulated(x, format);
  const auto dense = at::MemoryFormat::Contiguous;
  const Tensor least = accumulated(low, dense);
  const Tensor most = accumulated(high, dense);
  const Tensor w = accumulated(weight, format);
  const Step step = has_split_zbox(in, w, conv)
                        ? split_step(in, least, most, w, conv, stabilizer)
                        : extended_step(in, least, most, w, conv, stabilizer);
  return for_target_chunks(x, accumulated(relevance, format), psi, scale, format, {},
                           [&](const Tensor& incoming, const OptionalTensor& shift,
                               const OptionalTensor& unit, const Tensor&) {
                             Tensor total;
                             const Tensor values =
                                 finite(step(incoming, shift, total)).contiguous(format);
                             return settle_complete(values, total, unit, x.scalar_type());
                           });
}

}  // namespace

RAPKERNELS_REGISTER(m) {
  m.impl("relprop_zbox_linear", &relprop_zbox_linear);
  m.impl("relprop_zbox_conv", &relprop_zbox_conv);
}

}  // namespace rapkernels
