// |w-| of a convolution's weight as bfloat16.
#pragma once

#include <c10/util/BFloat16.h>

#include <array>
#include <cstdint>

namespace rapkernels::cpu {

// weight (outputs, inputs, rows, columns) in any layout, strides in elements; negative is dense,
// (outputs, rows, columns, inputs).
void round_negative_weight(const float* weight, const std::array<int64_t, 4>& sizes,
                           const std::array<int64_t, 4>& strides, c10::BFloat16* negative);

}  // namespace rapkernels::cpu
