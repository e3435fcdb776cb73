// RAP's relevance step of a linear layer (Eqs. 7-9). W is split in registers at every batch size:
// matrix products on split slices of W were measured slower up to 1024 rows.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "quotient.h"
#include "state.h"

namespace rapkernels {
namespace {

constexpr const char* kOp = "relprop_linear";

State relprop_linear(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                     OptionalTensor psi, OptionalTensor scale, std::string_view rule) {
  check_linear(kOp, x, weight, relevance);
  check_per_sample(kOp, "psi", psi, x);
  check_per_sample(kOp, "scale", scale, x);
  const Rule parsed = parse_rule(kOp, rule);

  const int64_t inputs = weight.size(1);
  const int64_t outputs = weight.size(0);
  const Tensor in = operand(x, at::MemoryFormat::Contiguous).reshape({-1, inputs});
  const Tensor w = operand(weight, at::MemoryFormat::Contiguous);
  const int64_t rows = in.size(0);

  Tensor positive = at::empty({rows, outputs}, in.options());
  Tensor negative = at::empty({rows, outputs}, in.options());
  AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), kOp, [&] {
    cpu::linear_split(in.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                      positive.mutable_data_ptr<scalar_t>(), negative.mutable_data_ptr<scalar_t>(),
                      rows, inputs, outputs);
  });

  const Tensor incoming = operand(relevance, at::MemoryFormat::Contiguous);
  const Parts s =
      quotient(positive.view(incoming.sizes()), negative.view(incoming.sizes()), incoming, psi,
               parsed, Form::kSplit, Packing::kApart, at::MemoryFormat::Contiguous);
  Tensor contribution = at::empty({rows, inputs}, in.options());
  AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), kOp, [&] {
    cpu::linear_contribution(in.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                             s.positive.const_data_ptr<scalar_t>(),
                             s.negative.const_data_ptr<scalar_t>(),
                             contribution.mutable_data_ptr<scalar_t>(), rows, inputs, outputs);
  });
  return settle(contribution.view(x.sizes()), std::nullopt, s.total, scale, x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(rapkernels, CPU, m) { m.impl("relprop_linear", &relprop_linear); }

}  // namespace rapkernels
