#include "rounded_weight.h"

#include "bfloat16.h"
#include "simd.h"

namespace rapkernels::cpu {
namespace {

RAPKERNELS_INLINE c10::BFloat16 negative_part(float w) { return rounded(w < 0.0f ? -w : 0.0f); }

// The inputs of one output and position.
RAPKERNELS_CLONES void round_run(const float* __restrict weight, int64_t stride,
                                 c10::BFloat16* __restrict negative, int64_t size) {
  if (stride == 1) {
    for (int64_t i = 0; i < size; ++i) negative[i] = negative_part(weight[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) negative[i] = negative_part(weight[i * stride]);
  }
}

}  // namespace

void round_negative_weight(const float* weight, const std::array<int64_t, 4>& sizes,
                           const std::array<int64_t, 4>& strides, c10::BFloat16* negative) {
  const auto [outputs, inputs, rows, columns] = sizes;
  const int64_t of_output = inputs * rows * columns;
  const int64_t at_once = std::max<int64_t>(1, kTask / std::max<int64_t>(1, of_output));
  at::parallel_for(
      0, outputs, at_once,
      [&, inputs = inputs, rows = rows, columns = columns](int64_t begin, int64_t end) {
        c10::BFloat16* out = negative + begin * of_output;
        for (int64_t o = begin; o < end; ++o) {
          for (int64_t y = 0; y < rows; ++y) {
            for (int64_t x = 0; x < columns; ++x, out += inputs) {
              round_run(weight + o * strides[0] + y * strides[2] + x * strides[3], strides[1], out,
                        inputs);
            }
          }
        }
      });
}

}  // namespace rapkernels::cpu
