// The residual add: relevance shared between the two terms of every element.
#include "../rules.h"
#include "targets.h"

namespace rapkernels::cpu {
namespace {

template <typename T, typename S>
RAPKERNELS_CLONES void add_run(const T* a, const T* b, const T* relevance, T psi, T stabilizer,
                               T* out_a, T* out_b, int64_t size, Sum<T>* absorbed) {
  T lost[kRun];
  for (int64_t i = 0; i < size; ++i) {
    const T r = shifted(relevance[i], psi);
    const T wa = S::weight(a[i]);
    const T wb = S::weight(b[i]);
    const T added = stabilizing(wa + wb, stabilizer);
    const T whole = wa + wb + added;
    const bool reached = carries_message(whole);
    out_a[i] = reached ? finite_or_zero(wa / whole * r) : T(0);
    out_b[i] = reached ? finite_or_zero(wb / whole * r) : T(0);
    lost[i] = reached ? finite_or_zero(added / whole * r) : r;
  }
  absorbed->add(lost, size);
}

template <typename T>
auto pick(Share share) {
  switch (share) {
    case Share::kAbsolute:
      return add_run<T, AbsoluteShare>;
    case Share::kRatio:
      return add_run<T, RatioShare>;
    default:
      return add_run<T, PositiveShare>;
  }
}

}  // namespace

template <typename T>
void add(const T* a, const T* b, const T* relevance, const double* psi, T* out_a, T* out_b,
         double* absorbed, int64_t samples, int64_t targets, int64_t size, Share share,
         double stabilizer) {
  const auto run = pick<T>(share);
  std::vector<double> partial(targets * samples * tasks_of(size));
  for_each_target_task(samples, targets, size,
                       [&](int64_t n, int64_t of_target, int64_t task, int64_t begin, int64_t end) {
                         Sum<T> sum;
                         const T shift = static_cast<T>(psi_of(psi, of_target));
                         for (int64_t i = begin; i < end; i += kRun) {
                           const int64_t from = n * size + i;
                           const int64_t at = of_target * size + i;
                           run(a + from, b + from, relevance + at, shift,
                               static_cast<T>(stabilizer), out_a + at, out_b + at,
                               std::min(kRun, end - i), &sum);
                         }
                         partial[of_target * tasks_of(size) + task] = sum.value();
                       });
  reduce(partial, absorbed, targets * samples);
}

#define RAPKERNELS_INSTANTIATE(T)                                                          \
  template void add(const T*, const T*, const T*, const double*, T*, T*, double*, int64_t, \
                    int64_t, int64_t, Share, double);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
