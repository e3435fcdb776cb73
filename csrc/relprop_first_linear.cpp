// RAP's first step, from the logit to the inputs of the last linear layer: absolute influence
// normalisation (Eqs. 5-6). One row of W per sample: nothing here is worth a kernel of its own.
#include <ATen/TensorOperators.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "device.h"
#include "numerics.h"
#include "state.h"

namespace rapkernels {
namespace {

constexpr const char* kOp = "relprop_first_linear";

// numerator / denominator per sample, zero where the denominator is no message or overflowed.
Tensor share(const Tensor& numerator, const Tensor& denominator) {
  const double tiny = numerator.scalar_type() == at::kDouble
                          ? Guard<double>::tiny
                          : static_cast<double>(Guard<float>::tiny);
  const Tensor carried = (denominator.abs() > tiny).logical_and(denominator.isfinite());
  const Tensor quotient = numerator / at::where(carried, denominator, at::ones_like(denominator));
  return at::where(carried.logical_and(quotient.isfinite()), quotient, at::zeros_like(quotient));
}

// The authors' contributions: the bias enters through the messages of x+ alone.
Tensor author_contributions(const Tensor& x, const Tensor& w, const Tensor& bias) {
  const Tensor messages = x * w;
  const Tensor of_positive = x.clamp_min(0) * w;
  const Tensor supporting = of_positive.clamp_min(0);
  const Tensor opposing = of_positive.clamp_max(0);
  const Tensor positive = messages.clamp_min(0).sum(1, true);
  const Tensor negative = messages.clamp_max(0).sum(1, true);
  const Tensor unit = share(bias, positive + negative);
  return messages + supporting * share(unit * positive, supporting.sum(1, true)) +
         opposing * share(unit * negative, opposing.sum(1, true));
}

State relprop_first_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                           const Tensor& target, const Tensor& score, std::string_view rule) {
  check_storage(kOp, "x", x);
  check_dim(kOp, "x", x, 2, 2);
  check_dim(kOp, "weight", weight, 2, 2);
  check_like(kOp, "weight", weight, "x", x);
  TORCH_CHECK(x.size(1) == weight.size(1), kOp, ": x must have ", weight.size(1),
              " features, as weight ", weight.sizes(), " needs, got ", x.sizes());
  if (bias) {
    check_like(kOp, "bias", *bias, "x", x);
    check_shape(kOp, "bias", *bias, {weight.size(0)});
  }
  TORCH_CHECK(target.scalar_type() == at::kLong, kOp, ": target must be int64, got ",
              target.scalar_type());
  check_targets(kOp, "target", target, "x", x, {});
  check_like(kOp, "score", score, "x", x);
  check_shape(kOp, "score", score, target.sizes());
  TORCH_CHECK(rule == "absolute" || rule == "author", kOp,
              ": rule must be 'absolute' or 'author', got '", rule, "'");

  if (x.size(0) == 0) {
    return {at::zeros_like(x), per_sample(x, 0), per_sample(x, 1), per_sample(x, 0)};
  }
  // Read on the host: a CUDA target would have to wait for the device.
  if (target.is_cpu()) {
    for (const int64_t worst : {target.min().item<int64_t>(), target.max().item<int64_t>()}) {
      TORCH_CHECK(worst >= 0 && worst < weight.size(0), kOp, ": target must be between 0 and ",
                  weight.size(0) - 1, ", got ", worst);
    }
  }

  const auto dense = at::MemoryFormat::Contiguous;
  const Tensor in = accumulated(x, dense).repeat({target.size(0) / x.size(0), 1});
  const Tensor w = accumulated(weight.index_select(0, target), dense);
  const Tensor y = accumulated(score, dense).unsqueeze(1);
  Tensor contributions = in * w;
  if (rule == "author" && bias) {
    contributions =
        author_contributions(in, w, accumulated(bias->index_select(0, target), dense).unsqueeze(1));
  }
  const Tensor influence = contributions.abs();
  const Tensor whole = influence.sum(1, true);
  const Tensor values = share(influence, whole) * y;
  const Tensor reached = share(whole, whole);
  const Tensor absorbed = ((1 - reached) * y).squeeze(1).to(at::kDouble);
  return settle_complete(values.contiguous(), absorbed, std::nullopt, x.scalar_type());
}

}  // namespace

RAPKERNELS_REGISTER(m) { m.impl("relprop_first_linear", &relprop_first_linear); }

}  // namespace rapkernels
