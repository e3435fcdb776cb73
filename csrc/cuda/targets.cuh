// Relevance with several targets over operands that have one.
#pragma once

#include <cstdint>

namespace rapkernels::cuda {

// The sample of the operands that sample m of the relevance belongs to. A grid has fewer than 2^31
// blocks and every sample at least one, so 32 bits hold them; a GPU divides those much faster.
__device__ __forceinline__ int64_t operand_sample(int64_t m, int64_t samples) {
  return static_cast<uint32_t>(m) % static_cast<uint32_t>(samples);
}

}  // namespace rapkernels::cuda
