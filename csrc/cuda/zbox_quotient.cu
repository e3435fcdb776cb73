// The z-box quotient S = R / Z of the input layer, with what meets no message summed per sample.
#include "../rules.h"
#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

template <typename T>
struct ZBoxQuotient {
  using Reduced = Sum;
  const T* z;
  const T* relevance;
  const double* psi;
  T* quotient;
  int64_t size;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Sum& absorbed) const {
    const int64_t at = n * size + i;
    const T shift = static_cast<T>(shift_of(psi, n));
    const auto messages = load<width>(z + at);
    const auto r = load<width>(relevance + at);
    Pack<T, width> s;
    for (int k = 0; k < width; ++k) {
      const T incoming = shifted(r.at[k], shift);
      const T whole = messages.at[k];
      s.at[k] = safe_quotient(incoming, whole);
      absorbed.add(carries_message(whole) ? T(0) : incoming);
    }
    store_pack(quotient + at, s);
  }
};

}  // namespace

template <typename T>
void zbox_quotient(const T* z, const T* relevance, const double* psi, T* quotient, double* absorbed,
                   int64_t samples, int64_t size) {
  constexpr int wide = kAccess / sizeof(T);
  reduce_elementwise<wide>("zbox_quotient", ZBoxQuotient<T>{z, relevance, psi, quotient, size},
                           absorbed, samples, size,
                           fits(wide, sizeof(T), {size}, {z, relevance, quotient}));
}

#define RAPKERNELS_INSTANTIATE(T) \
  template void zbox_quotient(const T*, const T*, const double*, T*, double*, int64_t, int64_t);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
