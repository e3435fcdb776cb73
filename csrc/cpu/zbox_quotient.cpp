// The z-box quotient S = R / Z of the input layer, with what meets no message summed per sample.
#include "../rules.h"
#include "simd.h"

namespace rapkernels::cpu {
namespace {

template <typename T>
RAPKERNELS_CLONES void zbox_run(const T* z, const T* relevance, T psi, T* quotient, int64_t size,
                                Sum<T>* absorbed) {
  T lost[kRun];
  for (int64_t i = 0; i < size; ++i) {
    const T r = shifted(relevance[i], psi);
    quotient[i] = safe_quotient(r, z[i]);
    lost[i] = carries_message(z[i]) ? T(0) : r;
  }
  absorbed->add(lost, size);
}

}  // namespace

template <typename T>
void zbox_quotient(const T* z, const T* relevance, const double* psi, T* quotient, double* absorbed,
                   int64_t samples, int64_t size) {
  std::vector<double> partial(samples * tasks_of(size));
  for_each_task(samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Sum<T> sum;
    const T shift = static_cast<T>(psi_of(psi, n));
    for (int64_t i = begin; i < end; i += kRun) {
      const int64_t at = n * size + i;
      zbox_run(z + at, relevance + at, shift, quotient + at, std::min(kRun, end - i), &sum);
    }
    partial[n * tasks_of(size) + task] = sum.value();
  });
  reduce(partial, absorbed, samples);
}

template void zbox_quotient(const float*, const float*, const double*, float*, double*, int64_t,
                            int64_t);
template void zbox_quotient(const double*, const double*, const double*, double*, double*, int64_t,
                            int64_t);

}  // namespace rapkernels::cpu
