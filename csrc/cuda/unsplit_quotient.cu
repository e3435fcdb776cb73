// The quotient of the rules that need no split: S = factor R / stab(Z + b), with what bias,
// stabilizer and outputs without a message take summed per sample.
#include "../rules.h"
#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

template <typename T>
struct UnsplitQuotient {
  using Reduced = Sum;
  const T* z;
  const T* relevance;
  const double* psi;
  const T* bias;
  Channels channels;
  T* quotient;
  int64_t period;
  int64_t size;
  Acc<T> factor;
  Acc<T> stabilizer;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Sum& absorbed) const {
    using A = Acc<T>;
    const A shift = static_cast<A>(shift_of(psi, n));
    const auto messages = load<width>(z + sample_of(n, period) * size + i);
    const auto r = load<width>(relevance + n * size + i);
    const auto offsets = load_bias<width>(bias, channels, i, size);
    Pack<T, width> out;
    for (int k = 0; k < width; ++k) {
      const A incoming = shifted(accumulated(r.at[k]), shift);
      const A given = finite_or_zero(factor * incoming);
      const A offset = offsets.at[k];
      const Stabilized<A> s =
          stabilized(given, accumulated(messages.at[k]) + offset, offset, stabilizer);
      out.at[k] = rounded<T>(s.quotient);
      absorbed.add(incoming - (given - s.absorbed));
    }
    store_pack(quotient + n * size + i, out);
  }
};

}  // namespace

template <typename T>
void unsplit_quotient(const T* z, const T* relevance, const double* psi, const T* bias,
                      const Channels& channels, T* quotient, double* absorbed, int64_t samples,
                      int64_t period, int64_t size, double factor, double stabilizer) {
  constexpr int wide = kAccess / sizeof(T);
  const UnsplitQuotient<T> body{z,
                                relevance,
                                psi,
                                bias,
                                channels,
                                quotient,
                                period,
                                size,
                                static_cast<Acc<T>>(factor),
                                static_cast<Acc<T>>(stabilizer)};
  reduce_elementwise<wide>("unsplit_quotient", body, absorbed, samples, size,
                           fits(wide, sizeof(T), {size}, {z, relevance, quotient}));
}

#define RAPKERNELS_INSTANTIATE(T)                                                                  \
  template void unsplit_quotient(const T*, const T*, const double*, const T*, const Channels&, T*, \
                                 double*, int64_t, int64_t, int64_t, double, double);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
