// RAP's relevance step of a linear layer (Eqs. 7-9).
#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "quotient.h"
#include "state.h"

namespace rapkernels {
namespace {

constexpr const char* kOp = "relprop_linear";

// Up to this many rows the step is bound by reading W, and the fused kernels read it once per
// direction; beyond, by arithmetic, and matrix products on split slices of W win.
constexpr int64_t kFusedRows = 16;

// Elements of a slice of W that is split for a matrix product: it stays in the last-level cache.
constexpr int64_t kSlice = int64_t{1} << 20;

Tensor positive_part(const Tensor& t) { return t.clamp_min(0); }
Tensor negative_part(const Tensor& t) { return t.neg().clamp_min_(0); }

// Calls body(first row, w+, |w-|) for slices of W.
template <typename Body>
void for_each_slice(const Tensor& weight, const Body& body) {
  const int64_t rows = std::max<int64_t>(1, kSlice / std::max<int64_t>(1, weight.size(1)));
  for (int64_t first = 0; first < weight.size(0); first += rows) {
    const Tensor slice = weight.narrow(0, first, std::min(rows, weight.size(0) - first));
    body(first, positive_part(slice), negative_part(slice));
  }
}

void split_by_products(const Tensor& x, const Tensor& weight, Tensor& positive, Tensor& negative) {
  const Tensor up = positive_part(x);
  const Tensor down = negative_part(x);
  const bool is_signed = down.any().item<bool>();
  for_each_slice(weight, [&](int64_t first, const Tensor& plus, const Tensor& minus) {
    Tensor z_plus = positive.narrow(1, first, plus.size(0));
    Tensor z_minus = negative.narrow(1, first, plus.size(0));
    z_plus.copy_(at::mm(up, plus.t()));
    z_minus.copy_(at::mm(up, minus.t()));
    if (is_signed) {
      z_plus.add_(at::mm(down, minus.t()));
      z_minus.add_(at::mm(down, plus.t()));
    }
  });
}

Tensor contribution_by_products(const Tensor& x, const Tensor& weight, const Tensor& positive,
                                const Tensor& negative) {
  const bool is_signed = (x < 0).any().item<bool>();
  Tensor up = at::zeros(x.sizes(), x.options());
  Tensor down = is_signed ? at::zeros(x.sizes(), x.options()) : up;
  for_each_slice(weight, [&](int64_t first, const Tensor& plus, const Tensor& minus) {
    const Tensor s_plus = positive.narrow(1, first, plus.size(0));
    const Tensor s_minus = negative.narrow(1, first, plus.size(0));
    up.addmm_(s_plus, plus).addmm_(s_minus, minus);
    if (is_signed) down.addmm_(s_plus, minus).addmm_(s_minus, plus);
  });
  return gate(x, up, down, is_signed ? Gate::kBySign : Gate::kProduct).values;
}

State relprop_linear(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                     const OptionalTensor& psi, const OptionalTensor& scale,
                     std::string_view rule) {
  check_storage(kOp, "x", x);
  TORCH_CHECK(x.dim() >= 2, kOp, ": x must have at least 2 dimensions (N, *, I), got ", x.dim());
  check_dim(kOp, "weight", weight, 2, 2);
  check_like(kOp, "weight", weight, "x", x);
  check_like(kOp, "relevance", relevance, "x", x);
  TORCH_CHECK(x.size(-1) == weight.size(1), kOp, ": x must have ", weight.size(1),
              " features in its last dimension, as weight ", weight.sizes(), " needs, got ",
              x.sizes());
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  check_shape(kOp, "relevance", relevance, shape);
  check_per_sample(kOp, "psi", psi, x);
  check_per_sample(kOp, "scale", scale, x);
  const Rule parsed = parse_rule(kOp, rule);

  const int64_t inputs = weight.size(1);
  const int64_t outputs = weight.size(0);
  const Tensor in = operand(x, at::MemoryFormat::Contiguous).reshape({-1, inputs});
  const Tensor w = operand(weight, at::MemoryFormat::Contiguous);
  const int64_t rows = in.size(0);
  const bool fused = rows <= kFusedRows;

  Tensor positive = at::empty({rows, outputs}, in.options());
  Tensor negative = at::empty({rows, outputs}, in.options());
  if (!fused) {
    split_by_products(in, w, positive, negative);
  } else {
    AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), kOp, [&] {
      cpu::linear_split(in.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                        positive.mutable_data_ptr<scalar_t>(),
                        negative.mutable_data_ptr<scalar_t>(), rows, inputs, outputs);
    });
  }

  const Tensor incoming = operand(relevance, at::MemoryFormat::Contiguous);
  const Parts s = quotient(positive.view(incoming.sizes()), negative.view(incoming.sizes()),
                           incoming, psi, parsed, Form::kSplit, Output::kParts, Packing::kApart);
  const Tensor s_plus = s.positive.view({rows, outputs});
  const Tensor s_minus = s.negative.view({rows, outputs});

  Tensor contribution;
  if (!fused) {
    contribution = contribution_by_products(in, w, s_plus, s_minus);
  } else {
    contribution = at::empty({rows, inputs}, in.options());
    AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), kOp, [&] {
      cpu::linear_contribution(in.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                               s_plus.const_data_ptr<scalar_t>(),
                               s_minus.const_data_ptr<scalar_t>(),
                               contribution.mutable_data_ptr<scalar_t>(), rows, inputs, outputs);
    });
  }
  return settle(contribution.view(x.sizes()), std::nullopt, s.total, scale, x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(rapkernels, CPU, m) { m.impl("relprop_linear", &relprop_linear); }

}  // namespace rapkernels
