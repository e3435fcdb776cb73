// Boundary checks: every message names the op, the argument, what was needed and what came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <optional>
#include <string>
#include <string_view>

#include "kernels.h"

namespace rapkernels {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void check_storage(const char* op, const char* name, const Tensor& t) {
  const auto type = t.scalar_type();
  TORCH_CHECK(
      type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16, op,
      ": ", name, " must be float32, float64, float16 or bfloat16, got ", t.scalar_type());
}

inline void check_like(const char* op, const char* name, const Tensor& t, const char* other_name,
                       const Tensor& other) {
  TORCH_CHECK(t.scalar_type() == other.scalar_type(), op, ": ", name, " must have the dtype of ",
              other_name, " (", other.scalar_type(), "), got ", t.scalar_type());
  TORCH_CHECK(t.device() == other.device(), op, ": ", name, " must be on the device of ",
              other_name, " (", other.device(), "), got ", t.device());
}

inline void check_shape(const char* op, const char* name, const Tensor& t, at::IntArrayRef shape) {
  TORCH_CHECK(t.sizes() == shape, op, ": ", name, " must have shape ", shape, ", got ", t.sizes());
}

inline void check_dim(const char* op, const char* name, const Tensor& t, int64_t low,
                      int64_t high) {
  TORCH_CHECK(t.dim() >= low && t.dim() <= high, op, ": ", name, " must have ", low,
              low == high ? "" : " to " + std::to_string(high), " dimensions, got ", t.dim());
}

// Whether the samples of `relevance` are those of x once or several times.
inline bool has_targets(const Tensor& x, const Tensor& relevance) {
  const int64_t samples = x.size(0);
  const int64_t asked = relevance.size(0);
  return asked == samples || (samples > 0 && asked >= samples && asked % samples == 0);
}

// `t` holds one or more samples of `shape` for each sample of `other`: target by target.
inline void check_targets(const char* op, const char* name, const Tensor& t, const char* other_name,
                          const Tensor& other, at::IntArrayRef shape) {
  auto wanted = shape.vec();
  wanted.insert(wanted.begin(), t.dim() > 0 ? t.size(0) : other.size(0));
  check_shape(op, name, t, wanted);
  TORCH_CHECK(has_targets(other, t), op, ": ", name, " must have a multiple of the ", other.size(0),
              " samples of ", other_name, ", got ", t.sizes());
}

// A linear layer: x (N, *, I), weight (O, I), relevance (T N, *, O).
inline void check_linear(const char* op, const Tensor& x, const Tensor& weight) {
  check_storage(op, "x", x);
  TORCH_CHECK(x.dim() >= 2, op, ": x must have at least 2 dimensions (N, *, I), got ", x.dim());
  check_dim(op, "weight", weight, 2, 2);
  check_like(op, "weight", weight, "x", x);
  TORCH_CHECK(x.size(-1) == weight.size(1), op, ": x must have ", weight.size(1),
              " features in its last dimension, as weight ", weight.sizes(), " needs, got ",
              x.sizes());
}

inline void check_linear(const char* op, const Tensor& x, const Tensor& weight,
                         const Tensor& relevance) {
  check_linear(op, x, weight);
  check_like(op, "relevance", relevance, "x", x);
  auto shape = x.sizes().slice(1).vec();
  shape.back() = weight.size(0);
  check_targets(op, "relevance", relevance, "x", x, shape);
}

// psi, scale and total: one float64 per sample, dense from here on.
inline void check_per_sample(const char* op, const char* name, OptionalTensor& t, const Tensor& x) {
  if (!t) return;
  TORCH_CHECK(t->scalar_type() == at::kDouble, op, ": ", name, " must be float64, got ",
              t->scalar_type());
  TORCH_CHECK(t->dim() == 1 && t->size(0) == x.size(0), op, ": ", name, " must have shape [",
              x.size(0), "], one entry per sample, got ", t->sizes());
  TORCH_CHECK(t->device() == x.device(), op, ": ", name, " must be on ", x.device(), ", got ",
              t->device());
  t = t->contiguous();
}

inline void check_list(const char* op, const char* name, at::IntArrayRef list, int64_t length,
                       int64_t least) {
  TORCH_CHECK(static_cast<int64_t>(list.size()) == length, op, ": ", name, " must have ", length,
              " entries, got ", list.size());
  for (const int64_t value : list) {
    TORCH_CHECK(value >= least, op, ": ", name, " must be at least ", least,
                " in every entry, got ", list);
  }
}

inline Rule parse_rap_rule(const char* op, std::string_view rule) {
  if (rule == "rap") return {Rule::kRap, {}};
  TORCH_CHECK(rule == "rap_conv", op, ": rule must be 'rap' or 'rap_conv', got '", rule, "'");
  return {Rule::kRapConv, {}};
}

inline void check_at_least_zero(const char* op, const char* name, double value,
                                const std::string& of = "") {
  TORCH_CHECK(value >= 0 && std::isfinite(value), op, ": ", name,
              " must be finite and at least 0, got ", value, of);
}

// The rule of a layer, with its parameters and the bias that it is told.
Rule parse_rule(const char* op, std::string_view rule, at::ArrayRef<double> parameters,
                const OptionalTensor& bias, const Tensor& weight);

inline Share parse_share(const char* op, std::string_view rule) {
  if (rule == "absolute") return Share::kAbsolute;
  if (rule == "ratio") return Share::kRatio;
  TORCH_CHECK(rule == "positive", op, ": rule must be 'absolute', 'ratio' or 'positive', got '",
              rule, "'");
  return Share::kPositive;
}

inline void check_stabilizer(const char* op, double stabilizer) {
  check_at_least_zero(op, "stabilizer", stabilizer);
}

}  // namespace rapkernels
