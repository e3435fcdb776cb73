// The z-box step of the input layer (RAP Eq. 10), as the z+ rule on the extended input
// [x - l, x - h] with the weights [w+, w-]: every message is >= 0 for l <= x <= h, so that nothing
// cancels, and zero padding of the extended input is exactly the zero padding of l and h.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "convolution.h"
#include "device.h"
#include "quotient.h"
#include "state.h"
#include "targets.h"

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
  const Tensor both =
      pad_unequal(extended(in - accumulated(low, dense), in - accumulated(high, dense), groups)
                      .contiguous(format),
                  conv);
  const Tensor w = accumulated(weight, format);
  const Tensor weights = extended(w.clamp_min(0), w.clamp_max(0), 1).contiguous(format);
  const Tensor z = convolve(both, weights, conv);
  return for_target_chunks(
      x, accumulated(relevance, format), psi, scale, format, {},
      [&](const Tensor& incoming, const OptionalTensor& shift, const OptionalTensor& unit,
          const Tensor&) {
        const Part q = zbox(z, incoming, shift, stabilizer);
        const Tensor messages = convolve_transposed(q.s, weights, both, conv);
        messages.unflatten(0, {-1, x.size(0)}).mul_(both);
        const Tensor values =
            finite(folded(crop_unequal(messages, conv), groups)).contiguous(format);
        return settle_complete(values, q.total, unit, x.scalar_type());
      });
}

}  // namespace

RAPKERNELS_REGISTER(m) {
  m.impl("relprop_zbox_linear", &relprop_zbox_linear);
  m.impl("relprop_zbox_conv", &relprop_zbox_conv);
}

}  // namespace rapkernels
