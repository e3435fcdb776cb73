// The residual add: relevance shared between its two terms.
#include "device.h"
#include "state.h"
#include "targets.h"

namespace rapkernels {
namespace {

State relprop_add(const Tensor& a, const Tensor& b, const Tensor& relevance, OptionalTensor psi,
                  OptionalTensor scale, std::string_view rule, double stabilizer) {
  constexpr const char* op = "relprop_add";
  check_storage(op, "a", a);
  TORCH_CHECK(a.dim() >= 1, op, ": a must have at least 1 dimension (N, ...), got 0");
  check_like(op, "b", b, "a", a);
  check_like(op, "relevance", relevance, "a", a);
  check_shape(op, "b", b, a.sizes());
  check_targets(op, "relevance", relevance, "a", a, a.sizes().slice(1));
  check_per_sample(op, "psi", psi, relevance);
  check_per_sample(op, "scale", scale, relevance);
  const Share share = parse_share(op, rule);
  check_stabilizer(op, stabilizer);

  const auto format = a.suggest_memory_format();
  const Tensor first = operand(a, format);
  const Tensor second = operand(b, format);
  const Tensor incoming = operand(relevance, format);
  Tensor to_a = empty_for_targets(first, relevance, format);
  Tensor to_b = empty_for_targets(first, relevance, format);
  Tensor absorbed = per_sample(relevance, 0);
  const int64_t samples = a.size(0);
  RAPKERNELS_DISPATCH(first, op, [&] {
    device::add(first.const_data_ptr<scalar_t>(), second.const_data_ptr<scalar_t>(),
                incoming.const_data_ptr<scalar_t>(), data_or_null(psi),
                to_a.mutable_data_ptr<scalar_t>(), to_b.mutable_data_ptr<scalar_t>(),
                absorbed.mutable_data_ptr<double>(), samples, targets_of(a, relevance),
                samples ? a.numel() / samples : 0, share, stabilizer);
  });
  if (scale) absorbed.mul_(*scale);
  const auto [values_a, values_b, unit] = settle_pair(to_a, to_b, scale, a.scalar_type());
  return {values_a, values_b, unit, absorbed};
}

}  // namespace

RAPKERNELS_REGISTER(m) { m.impl("relprop_add", &relprop_add); }

}  // namespace rapkernels
