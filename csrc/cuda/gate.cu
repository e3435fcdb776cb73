// The fused gate: C = x * G by the sign of x, with the sum, the count of non-zeros and the largest
// magnitude of C per sample in the same pass.
#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

template <typename T, Gate form>
struct GateBody {
  using Reduced = Measure;
  const T* x;
  const T* first;
  const T* second;
  T* contribution;  // may be `first`
  int64_t period;
  int64_t size;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Measure& measure) const {
    using A = Acc<T>;
    const int64_t at = n * size + i;
    const auto inputs = load<width>(x + sample_of(n, period) * size + i);
    const auto g = load<width>(first + at);
    Pack<T, width> h{};
    if (form != Gate::kProduct) h = load<width>(second + at);
    Pack<T, width> c;
    for (int k = 0; k < width; ++k) {
      const A v = accumulated(inputs.at[k]);
      const A up = accumulated(g.at[k]);
      const A down = accumulated(h.at[k]);
      A product;
      if (form == Gate::kProduct) {
        product = v * up;
      } else if (form == Gate::kSum) {
        product = v * (up + down);
      } else {
        product = magnitude(v) * (v > A(0) ? up : down);
      }
      c.at[k] = rounded<T>(finite_or_zero(product));
      measure.add(accumulated(c.at[k]));
    }
    store_pack(contribution + at, c);
  }
};

template <typename T, Gate form>
void run(const T* x, const T* first, const T* second, T* contribution, Statistics* statistics,
         int64_t samples, int64_t period, int64_t size) {
  constexpr int wide = kAccess / sizeof(T);
  reduce_elementwise<wide>("gate", GateBody<T, form>{x, first, second, contribution, period, size},
                           statistics, samples, size,
                           fits(wide, sizeof(T), {size}, {x, first, second, contribution}));
}

}  // namespace

template <typename T>
void gate(const T* x, const T* first, const T* second, T* contribution, Statistics* statistics,
          int64_t samples, int64_t period, int64_t size, Gate form) {
  const auto kernel = form == Gate::kProduct ? run<T, Gate::kProduct>
                      : form == Gate::kSum   ? run<T, Gate::kSum>
                                             : run<T, Gate::kBySign>;
  kernel(x, first, second, contribution, statistics, samples, period, size);
}

#define RAPKERNELS_INSTANTIATE(T)                                                              \
  template void gate(const T*, const T*, const T*, T*, Statistics*, int64_t, int64_t, int64_t, \
                     Gate);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
