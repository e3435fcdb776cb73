// Products of the matrices of a linear layer, by torch.
#pragma once

#include "checks.h"

namespace rapkernels {

// Whether those of float32 are as exact as float32: torch can be told to round to less.
bool multiplies_exactly();

// x (*, inputs) by the transpose of weight (outputs, inputs), plus bias (outputs).
Tensor matrix_product(const Tensor& x, const Tensor& weight,
                      const OptionalTensor& bias = std::nullopt);

// s (*, outputs) by weight (outputs, inputs). In `room` (*, inputs) unless that is undefined or the
// product comes in memory of its own.
Tensor matrix_product_transposed(const Tensor& s, const Tensor& weight, const Tensor& room = {});

}  // namespace rapkernels
