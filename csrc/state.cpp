#include "state.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "numerics.h"

namespace rapkernels {
namespace {

// float16 keeps most small entries when the largest is near the top of its range.
constexpr int kHalfExponent = 14;

// Bounds of the power of two: of itself in a double, and of the shift that it multiplies in T.
constexpr int kLargestMove = 1000;
constexpr int kLargestShift = 100;

Statistics* statistics_data(const Tensor& t) {
  return reinterpret_cast<Statistics*>(t.mutable_data_ptr<double>());
}

int exponent_of(double value) { return value > 0 && std::isfinite(value) ? std::ilogb(value) : 0; }

// The power of two that a sample is multiplied by before it is stored; `psi` is its pending shift.
double storage_factor(double largest, double psi, at::ScalarType storage, bool narrow) {
  if (!(largest > 0) || !std::isfinite(largest)) return 1.0;
  const int exponent = exponent_of(largest);
  if (!narrow && std::abs(exponent) <= kSafeExponent) return 1.0;
  const int target = storage == at::kHalf ? kHalfExponent : 0;
  const int move = std::clamp(target - exponent, -kLargestMove, kLargestMove);
  return std::ldexp(1.0, std::min(move, kLargestShift - exponent_of(std::abs(psi))));
}

void store(const Tensor& values, const Tensor& factor, const Tensor& stored,
           const Tensor& statistics) {
  const int64_t samples = values.size(0);
  const int64_t size = samples ? values.numel() / samples : 0;
  const double* by = factor.const_data_ptr<double>();
  Statistics* out = statistics_data(statistics);
  switch (stored.scalar_type()) {
    case at::kDouble:
      return cpu::store(values.const_data_ptr<double>(), by, stored.mutable_data_ptr<double>(), out,
                        samples, size);
    case at::kFloat:
      return cpu::store(values.const_data_ptr<float>(), by, stored.mutable_data_ptr<float>(), out,
                        samples, size);
    case at::kHalf:
      return cpu::store(values.const_data_ptr<float>(), by, stored.mutable_data_ptr<at::Half>(),
                        out, samples, size);
    default:
      return cpu::store(values.const_data_ptr<float>(), by, stored.mutable_data_ptr<at::BFloat16>(),
                        out, samples, size);
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

double largest_value(at::ScalarType type) {
  switch (type) {
    case at::kHalf:
      return 65504.0;
    case at::kBFloat16:
      return 0x1.FEp127;
    case at::kFloat:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

Tensor narrowed(const Tensor& values, at::ScalarType storage) {
  if (values.scalar_type() == storage) return values;
  const double largest = largest_value(storage);
  return values.clamp(-largest, largest).to(storage);
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
  const double* in_scale = data_or_null(scale);
  const double* wanted = data_or_null(total);
  bool rescale = narrow;
  for (int64_t n = 0; n < samples; ++n) {
    const Statistics& s = statistics_data(statistics)[n];
    const double shift = wanted && s.count > 0 ? (s.sum - wanted[n]) / s.count : 0;
    by[n] = storage_factor(s.largest, shift, storage, narrow);
    rescale = rescale || by[n] != 1.0;
  }
  Tensor values = contribution;
  if (rescale) {
    values =
        narrow ? at::empty_like(contribution, contribution.options().dtype(storage)) : contribution;
    store(contribution, factor, values, statistics);
  }
  Tensor psi = per_sample(contribution, 0.0);
  Tensor out_scale = per_sample(contribution, 1.0);
  Tensor absorbed = per_sample(contribution, 0.0);
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

std::tuple<Tensor, Tensor, Tensor> settle_pair(const Tensor& first, const Tensor& second,
                                               const OptionalTensor& scale,
                                               at::ScalarType storage) {
  Tensor unit = scale ? scale->clone() : per_sample(first, 1.0);
  if (storage == first.scalar_type()) return {first, second, unit};
  const Tensor of_first = measure(first);
  const Tensor of_second = measure(second);
  Tensor factor = per_sample(first, 1.0);
  for (int64_t n = 0; n < first.size(0); ++n) {
    const double largest =
        std::max(statistics_data(of_first)[n].largest, statistics_data(of_second)[n].largest);
    factor.mutable_data_ptr<double>()[n] = storage_factor(largest, 0, storage, true);
  }
  const auto stored = [&](const Tensor& values, const Tensor& statistics) {
    Tensor out = at::empty_like(values, values.options().dtype(storage));
    store(values, factor, out, statistics);
    return out;
  };
  return {stored(first, of_first), stored(second, of_second), unit.div_(factor)};
}

}  // namespace rapkernels
