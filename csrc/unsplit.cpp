#include "unsplit.h"

#include <ATen/TensorOperators.h>

#include <utility>

namespace rapkernels {

bool is_unsplit(const Rule& rule) {
  return rule.kind == Rule::kEpsilon || rule.kind == Rule::kAbsolute ||
         (rule.kind == Rule::kAlphaBeta && rule.parameters[1] == 0);
}

UnsplitStep::UnsplitStep(LinearOperator map, const Tensor& x, const Tensor& weight,
                         const OptionalTensor& z, const Outputs& outputs, bool nonnegative)
    : map_(std::move(map)), x_(x), channels_(outputs.channels) {
  const Rule& rule = outputs.rule;
  if (rule.kind == Rule::kEpsilon) {
    passes_ = {{x, weight}};
    if (z) sum_ = *z;
    bias_ = outputs.bias;
    stabilizer_ = rule.parameters[0];
  } else if (rule.kind == Rule::kAbsolute) {
    passes_ = {{nonnegative ? x : x.abs(), weight.abs()}};
  } else {
    passes_ = {{nonnegative ? x : x.clamp_min(0), weight.clamp_min(0)}};
    if (!nonnegative) {
      passes_.push_back({x.neg().clamp_min_(0), weight.neg().clamp_min_(0)});
    }
    if (outputs.bias) bias_ = outputs.bias->clamp_min(0);
    factor_ = rule.parameters[0];
    stabilizer_ = rule.parameters[2];
  }
  if (!sum_.defined()) {
    for (const Pass& pass : passes_) {
      const Tensor part = map_.forward(pass.x, pass.weight);
      sum_ = sum_.defined() ? sum_.add_(part) : part;
    }
  }
}

Gated UnsplitStep::operator()(const Tensor& relevance, const OptionalTensor& psi,
                              Tensor& total) const {
  const Part part = unsplit_quotient(sum_, relevance, psi, bias_, channels_, factor_, stabilizer_);
  total = part.total;
  const Tensor up = map_.adjoint(part.s, passes_[0].weight);
  if (passes_.size() == 1) return gate(passes_[0].x, up, std::nullopt, Gate::kProduct);
  return gate(x_, up, map_.adjoint(part.s, passes_[1].weight), Gate::kBySign);
}

}  // namespace rapkernels
