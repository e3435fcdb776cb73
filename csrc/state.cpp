#include "state.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>

#include <limits>

#include "device.h"

namespace rapkernels {
namespace {

Statistics* statistics_data(const Tensor& t) {
  return reinterpret_cast<Statistics*>(t.mutable_data_ptr<double>());
}

int64_t size_of(const Tensor& values) {
  return values.size(0) ? values.numel() / values.size(0) : 0;
}

// The power of two for each sample; `total` as in settle().
Tensor storage_factor(const Tensor& statistics, const OptionalTensor& total, at::ScalarType storage,
                      bool narrow) {
  const Tensor factor = per_sample(statistics);
  RAPKERNELS_DISPATCH(factor, "settle_factor", [&] {
    device::settle_factor(statistics_data(statistics), data_or_null(total),
                          factor.mutable_data_ptr<double>(), factor.size(0), storage_of(storage),
                          narrow);
  });
  return factor;
}

void store(const Tensor& values, const Tensor& factor, const Tensor& stored,
           const Tensor& statistics) {
  RAPKERNELS_DISPATCH(values, "store", [&] {
    device::store(values.const_data_ptr<scalar_t>(), factor.const_data_ptr<double>(),
                  stored.mutable_data_ptr(), storage_of(stored.scalar_type()),
                  statistics_data(statistics), values.size(0), size_of(values));
  });
}

}  // namespace

at::ScalarType accumulate_type(at::ScalarType storage) {
  return storage == at::kDouble ? at::kDouble : at::kFloat;
}

at::ScalarType working_type(const Tensor& t) {
  if (runs_cuda_kernels(t) && t.scalar_type() == at::kBFloat16) return at::kBFloat16;
  return accumulate_type(t.scalar_type());
}

Tensor operand(const Tensor& t, at::MemoryFormat format) {
  return t.to(working_type(t)).contiguous(format);
}

Tensor accumulated(const Tensor& t, at::MemoryFormat format) {
  return t.to(accumulate_type(t.scalar_type())).contiguous(format);
}

Storage storage_of(at::ScalarType type) {
  switch (type) {
    case at::kHalf:
      return Storage::kFloat16;
    case at::kBFloat16:
      return Storage::kBFloat16;
    case at::kFloat:
      return Storage::kFloat32;
    default:
      return Storage::kFloat64;
  }
}

Tensor per_sample(const Tensor& x, double value) {
  return at::full({x.size(0)}, value, x.options().dtype(at::kDouble));
}

Tensor per_sample(const Tensor& x) {
  return at::empty({x.size(0)}, x.options().dtype(at::kDouble));
}

Tensor empty_statistics(const Tensor& x) {
  return at::empty({x.size(0), 3}, x.options().dtype(at::kDouble));
}

Tensor measure(const Tensor& values) {
  Tensor statistics = empty_statistics(values);
  RAPKERNELS_DISPATCH(values, "measure", [&] {
    device::measure(values.const_data_ptr<scalar_t>(), statistics_data(statistics), values.size(0),
                    size_of(values));
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
  const bool narrow = storage != contribution.scalar_type();
  const Tensor statistics = measured ? *measured : measure(contribution);
  const Tensor factor = storage_factor(statistics, total, storage, narrow);
  const Tensor values =
      narrow ? at::empty_like(contribution, contribution.options().dtype(storage)) : contribution;
  store(contribution, factor, values, statistics);
  const Tensor psi = per_sample(contribution);
  const Tensor out_scale = per_sample(contribution);
  const Tensor absorbed = per_sample(contribution);
  RAPKERNELS_DISPATCH(factor, "settle_shift", [&] {
    device::settle_shift(statistics_data(statistics), data_or_null(total),
                         factor.const_data_ptr<double>(), data_or_null(scale),
                         psi.mutable_data_ptr<double>(), out_scale.mutable_data_ptr<double>(),
                         absorbed.mutable_data_ptr<double>(), factor.size(0));
  });
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
  const Tensor factor =
      storage_factor(at::maximum(of_first, of_second), std::nullopt, storage, /*narrow=*/true);
  const auto stored = [&](const Tensor& values, const Tensor& statistics) {
    Tensor out = at::empty_like(values, values.options().dtype(storage));
    store(values, factor, out, statistics);
    return out;
  };
  return {stored(first, of_first), stored(second, of_second), unit.div_(factor)};
}

}  // namespace rapkernels
