// The quotient of the rules that need no split: S = factor R / stab(Z + b), with what bias,
// stabilizer and outputs without a message take summed per sample.
#include "../rules.h"
#include "simd.h"

namespace rapkernels::cpu {
namespace {

template <typename T>
RAPKERNELS_CLONES void unsplit_run(const T* __restrict z, const T* __restrict relevance,
                                   const T* __restrict bias, T psi, T factor, T stabilizer,
                                   T* __restrict quotient, int64_t size, Sum<T>* absorbed) {
  T lost[kRun];
  for (int64_t i = 0; i < size; ++i) {
    const T incoming = shifted(relevance[i], psi);
    const T given = finite_or_zero(factor * incoming);
    const Stabilized<T> s = stabilized(given, z[i] + bias[i], bias[i], stabilizer);
    quotient[i] = s.quotient;
    lost[i] = incoming - (given - s.absorbed);
  }
  absorbed->add(lost, size);
}

}  // namespace

template <typename T>
void unsplit_quotient(const T* z, const T* relevance, const double* psi, const T* bias,
                      const Channels& channels, T* quotient, double* absorbed, int64_t samples,
                      int64_t period, int64_t size, double factor, double stabilizer) {
  std::vector<double> partial(samples * tasks_of(size));
  for_each_task(samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Sum<T> sum;
    T offsets[kRun] = {};
    const T shift = static_cast<T>(psi_of(psi, n));
    for (int64_t i = begin; i < end; i += kRun) {
      const int64_t at = n * size + i;
      const int64_t length = std::min(kRun, end - i);
      if (bias != nullptr) spread_bias(bias, channels, i, length, offsets);
      unsplit_run(z + n % period * size + i, relevance + at, offsets, shift, static_cast<T>(factor),
                  static_cast<T>(stabilizer), quotient + at, length, &sum);
    }
    partial[n * tasks_of(size) + task] = sum.value();
  });
  reduce(partial, absorbed, samples);
}

#define RAPKERNELS_INSTANTIATE(T)                                                                  \
  template void unsplit_quotient(const T*, const T*, const double*, const T*, const Channels&, T*, \
                                 double*, int64_t, int64_t, int64_t, double, double);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
