// w+ and |w-| of a weight in one read.
#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

template <typename T>
struct SplitWeight {
  using Reduced = Nothing;
  const T* weight;
  T* positive;
  T* negative;

  template <int width>
  __device__ void run(int64_t, int64_t i, Nothing&) const {
    const auto w = load<width>(weight + i);
    Pack<T, width> plus, minus;
    for (int k = 0; k < width; ++k) {
      const Acc<T> v = accumulated(w.at[k]);
      plus.at[k] = static_cast<T>(v > Acc<T>(0) ? v : Acc<T>(0));
      minus.at[k] = static_cast<T>(v < Acc<T>(0) ? -v : Acc<T>(0));
    }
    store_pack(positive + i, plus);
    store_pack(negative + i, minus);
  }
};

}  // namespace

template <typename T>
void split_weight(const T* weight, T* positive, T* negative, int64_t size) {
  constexpr int wide = kAccess / sizeof(T);
  launch_elementwise<wide>("split_weight", SplitWeight<T>{weight, positive, negative}, nullptr,
                           /*samples=*/1, size,
                           fits(wide, sizeof(T), {size}, {weight, positive, negative}));
}

#define RAPKERNELS_INSTANTIATE(T) template void split_weight(const T*, T*, T*, int64_t);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
