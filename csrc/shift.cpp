// Relevance states outside a layer step: the uniform shift applied, and two states added.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/maximum.h>

#include "device.h"
#include "state.h"
#include "workspace.h"

namespace rapkernels {
namespace {

Tensor apply_shift(const Tensor& values, OptionalTensor psi, OptionalTensor scale) {
  constexpr const char* op = "apply_shift";
  check_storage(op, "values", values);
  TORCH_CHECK(values.dim() >= 1, op, ": values must have at least 1 dimension (N, ...), got 0");
  check_per_sample(op, "psi", psi, values);
  check_per_sample(op, "scale", scale, values);
  const Tensor in = operand(values, values.suggest_memory_format());
  Tensor out = workspace_empty_like(in);
  const int64_t samples = values.size(0);
  RAPKERNELS_DISPATCH(in, op, [&] {
    device::apply_shift(in.const_data_ptr<scalar_t>(), data_or_null(psi), data_or_null(scale),
                        out.mutable_data_ptr<scalar_t>(), largest_value(values.scalar_type()),
                        samples, samples ? values.numel() / samples : 0);
  });
  return out.to(values.scalar_type());
}

std::tuple<Tensor, Tensor> merge(const Tensor& values_a, OptionalTensor psi_a,
                                 OptionalTensor scale_a, const Tensor& values_b,
                                 OptionalTensor psi_b, OptionalTensor scale_b) {
  constexpr const char* op = "merge";
  check_storage(op, "values_a", values_a);
  TORCH_CHECK(values_a.dim() >= 1, op, ": values_a must have at least 1 dimension (N, ...), got 0");
  check_like(op, "values_b", values_b, "values_a", values_a);
  check_shape(op, "values_b", values_b, values_a.sizes());
  check_per_sample(op, "psi_a", psi_a, values_a);
  check_per_sample(op, "scale_a", scale_a, values_a);
  check_per_sample(op, "psi_b", psi_b, values_a);
  check_per_sample(op, "scale_b", scale_b, values_a);

  const auto format = values_a.suggest_memory_format();
  const Tensor a = operand(values_a, format);
  const Tensor b = operand(values_b, format);
  const Tensor one = per_sample(a, 1);
  const Tensor unit_a = scale_a ? *scale_a : one;
  const Tensor unit_b = scale_b ? *scale_b : one;
  const Tensor unit = at::maximum(unit_a, unit_b);
  const Tensor factor_a = unit_a / unit;
  const Tensor factor_b = unit_b / unit;
  Tensor sum = workspace_empty_like(a);
  const int64_t samples = a.size(0);
  RAPKERNELS_DISPATCH(a, op, [&] {
    device::merge(a.const_data_ptr<scalar_t>(), data_or_null(psi_a), data_or_null(factor_a),
                  b.const_data_ptr<scalar_t>(), data_or_null(psi_b), data_or_null(factor_b),
                  sum.mutable_data_ptr<scalar_t>(), samples, samples ? a.numel() / samples : 0);
  });
  const State state = settle_complete(sum, per_sample(a, 0), unit, values_a.scalar_type());
  return {std::get<0>(state), std::get<2>(state)};
}

}  // namespace

RAPKERNELS_REGISTER(m) {
  m.impl("apply_shift", &apply_shift);
  m.impl("merge", &merge);
}

}  // namespace rapkernels
