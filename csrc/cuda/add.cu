// The residual add: relevance shared between the two terms of every element.
#include "../rules.h"
#include "elementwise.cuh"
#include "targets.cuh"

namespace rapkernels::cuda {
namespace {

template <typename T, typename S>
struct Add {
  using Reduced = Sum;
  const T* a;
  const T* b;
  const T* relevance;
  const double* psi;
  T* out_a;
  T* out_b;
  int64_t samples;
  int64_t size;
  double stabilizer;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Sum& absorbed) const {
    using A = Acc<T>;
    const int64_t from = operand_sample(n, samples) * size + i;
    const int64_t at = n * size + i;
    const A shift = static_cast<A>(shift_of(psi, n));
    const auto of_a = load<width>(a + from);
    const auto of_b = load<width>(b + from);
    const auto incoming = load<width>(relevance + at);
    Pack<T, width> to_a, to_b;
    for (int k = 0; k < width; ++k) {
      const A r = shifted(accumulated(incoming.at[k]), shift);
      const A wa = S::weight(accumulated(of_a.at[k]));
      const A wb = S::weight(accumulated(of_b.at[k]));
      const A added = stabilizing(wa + wb, static_cast<A>(stabilizer));
      const A whole = wa + wb + added;
      const bool reached = carries_message(whole);
      to_a.at[k] = rounded<T>(reached ? wa / whole * r : A(0));
      to_b.at[k] = rounded<T>(reached ? wb / whole * r : A(0));
      absorbed.add(reached ? finite_or_zero(added / whole * r) : r);
    }
    store_pack(out_a + at, to_a);
    store_pack(out_b + at, to_b);
  }
};

template <typename T, typename S>
void run(const T* a, const T* b, const T* relevance, const double* psi, T* out_a, T* out_b,
         double* absorbed, int64_t samples, int64_t targets, int64_t size, double stabilizer) {
  constexpr int wide = kAccess / sizeof(T);
  const Add<T, S> body{a, b, relevance, psi, out_a, out_b, samples, size, stabilizer};
  reduce_elementwise<wide>("add", body, absorbed, targets * samples, size,
                           fits(wide, sizeof(T), {size}, {a, b, relevance, out_a, out_b}));
}

template <typename T>
auto pick(Share share) {
  return share == Share::kAbsolute ? run<T, AbsoluteShare>
         : share == Share::kRatio  ? run<T, RatioShare>
                                   : run<T, PositiveShare>;
}

}  // namespace

template <typename T>
void add(const T* a, const T* b, const T* relevance, const double* psi, T* out_a, T* out_b,
         double* absorbed, int64_t samples, int64_t targets, int64_t size, Share share,
         double stabilizer) {
  pick<T>(share)(a, b, relevance, psi, out_a, out_b, absorbed, samples, targets, size, stabilizer);
}

#define RAPKERNELS_INSTANTIATE(T)                                                          \
  template void add(const T*, const T*, const T*, const double*, T*, T*, double*, int64_t, \
                    int64_t, int64_t, Share, double);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
