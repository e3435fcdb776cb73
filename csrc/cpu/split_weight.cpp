// w+ and |w-| of a weight in one read.
#include "simd.h"

namespace rapkernels::cpu {
namespace {

template <typename T>
RAPKERNELS_CLONES void split_run(const T* __restrict weight, T* __restrict positive,
                                 T* __restrict negative, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const T w = weight[i];
    positive[i] = w > T(0) ? w : T(0);
    negative[i] = w < T(0) ? -w : T(0);
  }
}

}  // namespace

template <typename T>
void split_weight(const T* weight, T* positive, T* negative, int64_t size) {
  for_each_task(1, size, [&](int64_t, int64_t, int64_t begin, int64_t end) {
    split_run(weight + begin, positive + begin, negative + begin, end - begin);
  });
}

template void split_weight(const float*, float*, float*, int64_t);
template void split_weight(const double*, double*, double*, int64_t);

}  // namespace rapkernels::cpu
