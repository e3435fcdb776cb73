#include "state.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "kernels.h"
#include "numerics.h"

namespace rapkernels {
namespace {

// float16 keeps most small entries when the largest is near the top of its range.
constexpr int kHalfExponent = 14;

Statistics* statistics_data(const Tensor& t) {
  return reinterpret_cast<Statistics*>(t.mutable_data_ptr<double>());
}

// The power of two that a sample is multiplied by before it is stored.
double storage_factor(double largest, bool narrow) {
  if (!(largest > 0) || !std::isfinite(largest)) return 1.0;
  const int exponent = std::ilogb(largest);
  if (!narrow && std::abs(exponent) <= kSafeExponent) return 1.0;
  return std::ldexp(1.0, (narrow ? kHalfExponent : 0) - exponent);
}

void store(const Tensor& values, const Tensor& factor, const Tensor& stored,
           const Tensor& statistics) {
  const int64_t samples = values.size(0);
  const int64_t size = samples ? values.numel() / samples : 0;
  const double* by = factor.const_data_ptr<double>();
  Statistics* out = statistics_data(statistics);
  switch (stored.scalar_type()) {
    case at::kDouble:
      return cpu::store(values.const_data_ptr<double>(), by, stored.mutable_data_ptr<double>(),
                        out, samples, size);
    case at::kFloat:
      return cpu::store(values.const_data_ptr<float>(), by, stored.mutable_data_ptr<float>(), out,
                        samples, size);
    case at::kHalf:
      return cpu::store(values.const_data_ptr<float>(), by, stored.mutable_data_ptr<at::Half>(),
                        out, samples, size);
    default:
      return cpu::store(values.const_data_ptr<float>(), by,
                        stored.mutable_data_ptr<at::BFloat16>(), out, samples, size);
  }
}

}  // namespace

at::ScalarType accumulate_type(at::ScalarType storage) {
  return storage == at::kDouble ? at::kDouble : at::kFloat;
}

Tensor operand(const Tensor& t, at::MemoryFormat format) {
  return t.to(accumulate_type(t.scalar_type())).contiguous(format);
}

Tensor per_sample(const Tensor& x, double value) {
  return at::full({x.size(0)}, value, x.options().dtype(at::kDouble));
}

Tensor empty_statistics(const Tensor& x) {
  return at::empty({x.size(0), 3}, x.options().dtype(at::kDouble));
}

Tensor measure(const Tensor& values) {
  Tensor statistics = empty_statistics(values);
  const int64_t samples = values.size(0);
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "measure", [&] {
    cpu::measure(values.const_data_ptr<scalar_t>(), statistics_data(statistics), samples,
                 samples ? values.numel() / samples : 0);
  });
  return statistics;
}

const double* data_or_null(const OptionalTensor& t) {
  return t ? t->const_data_ptr<double>() : nullptr;
}

State settle(const Tensor& contribution, const OptionalTensor& measured,
             const OptionalTensor& total, const OptionalTensor& scale, at::ScalarType storage) {
  const int64_t samples = contribution.size(0);
  const bool narrow = storage != contribution.scalar_type();
  Tensor statistics = measured ? *measured : measure(contribution);
  Tensor factor = per_sample(contribution, 1.0);
  double* by = factor.mutable_data_ptr<double>();
  bool rescale = narrow;
  for (int64_t n = 0; n < samples; ++n) {
    by[n] = storage_factor(statistics_data(statistics)[n].largest, narrow);
    rescale = rescale || by[n] != 1.0;
  }
  Tensor values = contribution;
  if (rescale) {
    values = narrow ? at::empty_like(contribution, contribution.options().dtype(storage))
                    : contribution;
    store(contribution, factor, values, statistics);
  }
  Tensor psi = per_sample(contribution, 0.0);
  Tensor out_scale = per_sample(contribution, 1.0);
  Tensor absorbed = per_sample(contribution, 0.0);
  const double* in_scale = data_or_null(scale);
  const double* wanted = data_or_null(total);
  for (int64_t n = 0; n < samples; ++n) {
    const Statistics& s = statistics_data(statistics)[n];
    const double unit = in_scale ? in_scale[n] : 1.0;
    out_scale.mutable_data_ptr<double>()[n] = unit / by[n];
    if (!wanted) continue;
    if (s.count > 0) {
      psi.mutable_data_ptr<double>()[n] = (s.sum - wanted[n] * by[n]) / s.count;
    } else {
      absorbed.mutable_data_ptr<double>()[n] = wanted[n] * unit;
    }
  }
  return {values, psi, out_scale, absorbed};
}

State settle_complete(const Tensor& values, const Tensor& absorbed, const OptionalTensor& scale,
                      at::ScalarType storage) {
  if (storage == values.scalar_type()) {
    Tensor unit = scale ? scale->clone() : per_sample(values, 1.0);
    return {values, per_sample(values, 0.0), unit, scale ? absorbed * *scale : absorbed};
  }
  State state = settle(values, std::nullopt, std::nullopt, scale, storage);
  std::get<3>(state) = scale ? absorbed * *scale : absorbed;
  return state;
}

}  // namespace rapkernels
