// The residual add: relevance shared between the two terms of every element.
#include "../rules.h"
#include "simd.h"

namespace rapkernels::cpu {
namespace {

template <typename T, typename S>
RAPKERNELS_CLONES void add_run(const T* a, const T* b, const T* relevance, T psi, T* out_a,
                               T* out_b, int64_t size, Sum<T>* absorbed) {
  T lost[kRun];
  for (int64_t i = 0; i < size; ++i) {
    const T r = shifted(relevance[i], psi);
    const T wa = S::weight(a[i]);
    const T wb = S::weight(b[i]);
    const T whole = wa + wb;
    const bool reached = carries_message(whole);
    out_a[i] = reached ? finite_or_zero(wa / whole * r) : T(0);
    out_b[i] = reached ? finite_or_zero(wb / whole * r) : T(0);
    lost[i] = reached ? T(0) : r;
  }
  absorbed->add(lost, size);
}

}  // namespace

template <typename T>
void add(const T* a, const T* b, const T* relevance, const double* psi, T* out_a, T* out_b,
         double* absorbed, int64_t samples, int64_t size, Share share) {
  const auto run = share == Share::kAbsolute ? add_run<T, AbsoluteShare> : add_run<T, RatioShare>;
  std::vector<double> partial(samples * tasks_of(size));
  for_each_task(samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Sum<T> sum;
    const T shift = static_cast<T>(psi_of(psi, n));
    for (int64_t i = begin; i < end; i += kRun) {
      const int64_t at = n * size + i;
      run(a + at, b + at, relevance + at, shift, out_a + at, out_b + at, std::min(kRun, end - i),
          &sum);
    }
    partial[n * tasks_of(size) + task] = sum.value();
  });
  reduce(partial, absorbed, samples);
}

template void add(const float*, const float*, const float*, const double*, float*, float*, double*,
                  int64_t, int64_t, Share);
template void add(const double*, const double*, const double*, const double*, double*, double*,
                  double*, int64_t, int64_t, Share);

}  // namespace rapkernels::cpu
