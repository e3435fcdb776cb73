// RAP's relevance step of a linear layer (Eqs. 7-9).
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "device.h"
#include "quotient.h"
#include "state.h"

namespace rapkernels {
namespace {

constexpr const char* kOp = "relprop_linear";
constexpr auto kDense = at::MemoryFormat::Contiguous;

// On CUDA, rows from which matrix products on split slices of W are left to torch. On the CPU the
// fused step was measured faster up to 1024 rows.
constexpr int64_t kManyRows = 33;
// Outputs whose w+ and |w-| are held at a time.
constexpr int64_t kSlice = 1024;

// x (N, *, inputs) and the relevance of the outputs (N, *, outputs), dense and of one type.
struct Incoming {
  Tensor x;
  Tensor relevance;
  OptionalTensor psi;
  Rule rule;
  bool nonnegative;

  Parts quotient(const Tensor& positive, const Tensor& negative) const {
    return rapkernels::quotient(positive.view(relevance.sizes()), negative.view(relevance.sizes()),
                                relevance, psi, rule, Form::kSplit, Packing::kApart, kDense);
  }
};

// W is split in registers, and its type may be narrower than that of x.
Gated fused_step(const Incoming& in, const Tensor& weight, Tensor& total) {
  const Tensor w = runs_cuda_kernels(weight) ? weight.contiguous() : accumulated(weight, kDense);
  const int64_t inputs = w.size(1);
  const int64_t outputs = w.size(0);
  const int64_t rows = outputs ? in.relevance.numel() / outputs : 0;
  const Storage storage = storage_of(w.scalar_type());
  Tensor positive = at::empty_like(in.relevance);
  Tensor negative = at::empty_like(in.relevance);
  Tensor contribution = at::empty_like(in.x);
  RAPKERNELS_DISPATCH_ACCUMULATED(in.x, kOp, [&] {
    device::linear_split(in.x.const_data_ptr<scalar_t>(), w.const_data_ptr(), storage,
                         positive.mutable_data_ptr<scalar_t>(),
                         negative.mutable_data_ptr<scalar_t>(), rows, inputs, outputs,
                         in.nonnegative);
  });
  const Parts s = in.quotient(positive, negative);
  total = s.total;
  RAPKERNELS_DISPATCH_ACCUMULATED(in.x, kOp, [&] {
    device::linear_contribution(
        in.x.const_data_ptr<scalar_t>(), w.const_data_ptr(), storage,
        s.positive.const_data_ptr<scalar_t>(), s.negative.const_data_ptr<scalar_t>(),
        contribution.mutable_data_ptr<scalar_t>(), rows, inputs, outputs, in.nonnegative);
  });
  return {contribution, measure(contribution)};
}

// Calls body(first output, w+, |w-|) for each slice of W.
template <typename Body>
void for_each_slice(const Tensor& w, const Body& body) {
  for (int64_t begin = 0; begin < w.size(0); begin += kSlice) {
    const Tensor slice = w.narrow(0, begin, std::min(kSlice, w.size(0) - begin));
    const Tensor plus = at::empty_like(slice);
    const Tensor minus = at::empty_like(slice);
    RAPKERNELS_DISPATCH(slice, kOp, [&] {
      device::split_weight(slice.const_data_ptr<scalar_t>(), plus.mutable_data_ptr<scalar_t>(),
                           minus.mutable_data_ptr<scalar_t>(), slice.numel());
    });
    body(begin, plus, minus);
  }
}

// For x >= 0 half of the products fall away.
Gated product_step(const Incoming& in, const Tensor& weight, Tensor& total) {
  const Tensor w = operand(weight, kDense);
  const Tensor x = in.x.view({-1, w.size(1)});
  const Tensor up = in.nonnegative ? x : x.clamp_min(0);
  const Tensor down = in.nonnegative ? Tensor() : x.neg().clamp_min_(0);
  const Tensor positive = at::empty({x.size(0), w.size(0)}, x.options());
  const Tensor negative = at::empty_like(positive);
  for_each_slice(w, [&](int64_t begin, const Tensor& plus, const Tensor& minus) {
    const auto sum = [&](const Tensor& of_positive, const Tensor& of_negative) {
      const Tensor sum = at::mm(up, of_positive.t());
      return in.nonnegative ? sum : sum.addmm_(down, of_negative.t());
    };
    positive.narrow(1, begin, plus.size(0)).copy_(sum(plus, minus));
    negative.narrow(1, begin, plus.size(0)).copy_(sum(minus, plus));
  });
  const Parts s = in.quotient(positive, negative);
  total = s.total;
  const Tensor s_plus = s.positive.view(positive.sizes());
  const Tensor s_minus = s.negative.view(positive.sizes());
  const Tensor above = at::zeros_like(x);
  const Tensor below = in.nonnegative ? Tensor() : at::zeros_like(x);
  for_each_slice(w, [&](int64_t begin, const Tensor& plus, const Tensor& minus) {
    const Tensor supporting = s_plus.narrow(1, begin, plus.size(0));
    const Tensor opposing = s_minus.narrow(1, begin, plus.size(0));
    above.addmm_(supporting, plus).addmm_(opposing, minus);
    if (!in.nonnegative) below.addmm_(supporting, minus).addmm_(opposing, plus);
  });
  const Tensor gradient = above.view(in.x.sizes());
  return in.nonnegative ? gate(in.x, gradient, std::nullopt, Gate::kProduct)
                        : gate(in.x, gradient, below.view(in.x.sizes()), Gate::kBySign);
}

State relprop_linear(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                     OptionalTensor psi, OptionalTensor scale, std::string_view rule,
                     bool nonnegative) {
  check_linear(kOp, x, weight, relevance);
  check_per_sample(kOp, "psi", psi, x);
  check_per_sample(kOp, "scale", scale, x);
  const Rule parsed = parse_rule(kOp, rule);

  const int64_t inputs = weight.size(1);
  Tensor total;
  Gated gated;
  if (runs_cuda_kernels(x) && x.numel() >= kManyRows * inputs && x.numel() > 0) {
    const Incoming in{operand(x, kDense), operand(relevance, kDense), psi, parsed, nonnegative};
    gated = product_step(in, weight, total);
  } else {
    const Incoming in{accumulated(x, kDense), accumulated(relevance, kDense), psi, parsed,
                      nonnegative};
    gated = fused_step(in, weight, total);
  }
  return settle(gated.values, gated.statistics, total, scale, x.scalar_type());
}

}  // namespace

RAPKERNELS_REGISTER(m) { m.impl("relprop_linear", &relprop_linear); }

}  // namespace rapkernels
