// The step of the rules that need one sum of each output instead of two: half of the work.
#pragma once

#include <functional>
#include <vector>

#include "quotient.h"

namespace rapkernels {

// C_W and T_W of a layer.
struct LinearOperator {
  std::function<Tensor(const Tensor& x, const Tensor& weight)> forward;
  std::function<Tensor(const Tensor& s, const Tensor& weight)> adjoint;
};

// Epsilon needs z, "absolute" A, alpha-beta with beta = 0 (the z+ rule) only Z+.
bool is_unsplit(const Rule& rule);

class UnsplitStep {
 public:
  // x, weight and bias (in `outputs`) dense in the working type; `z` is C_W(x) where it is known.
  UnsplitStep(LinearOperator map, const Tensor& x, const Tensor& weight, const OptionalTensor& z,
              const Outputs& outputs, bool nonnegative);

  // The contributions of the relevance, and in `total` what was absorbed of it.
  Gated operator()(const Tensor& relevance, const OptionalTensor& psi, Tensor& total) const;

 private:
  // What the messages are made of: all of them, or those of the inputs of one sign.
  struct Pass {
    Tensor x;
    Tensor weight;
  };

  LinearOperator map_;
  Tensor x_;
  std::vector<Pass> passes_;
  Tensor sum_;
  OptionalTensor bias_;
  Channels channels_;
  double factor_ = 1;
  double stabilizer_ = 0;
};

}  // namespace rapkernels
