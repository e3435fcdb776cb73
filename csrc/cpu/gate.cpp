// The fused gate: C = x * G by the sign of x, with the sum, the count of non-zeros and the largest
// magnitude of C per sample in the same pass.
#include "simd.h"

namespace rapkernels::cpu {
namespace {

template <typename T, Gate form>
RAPKERNELS_CLONES void gate_run(const T* x, const T* first, const T* second, T* contribution,
                                int64_t size, Measure<T>* measure) {
  for (int64_t i = 0; i < size; ++i) {
    const T v = x[i];
    const T g = first[i];
    T c;
    if (form == Gate::kProduct) {
      c = v * g;
    } else if (form == Gate::kSum) {
      c = v * (g + second[i]);
    } else if (form == Gate::kEvenOdd) {
      // Where no message carries anything, the two are each other's negative to the last bit.
      c = magnitude(v) * (v > T(0) ? g + second[i] : g - second[i]);
    } else {
      c = magnitude(v) * (v > T(0) ? g : second[i]);
    }
    contribution[i] = finite_or_zero(c);
  }
  measure->add(contribution, size);
}

template <typename T>
auto pick(Gate form) {
  switch (form) {
    case Gate::kProduct:
      return gate_run<T, Gate::kProduct>;
    case Gate::kSum:
      return gate_run<T, Gate::kSum>;
    case Gate::kEvenOdd:
      return gate_run<T, Gate::kEvenOdd>;
    default:
      return gate_run<T, Gate::kBySign>;
  }
}

}  // namespace

template <typename T>
void gate(const T* x, const T* first, const T* second, T* contribution, Statistics* statistics,
          int64_t samples, int64_t period, int64_t size, Gate form) {
  const auto run = pick<T>(form);
  std::vector<Statistics> partial(samples * tasks_of(size));
  for_each_task(samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Measure<T> measure;
    for (int64_t i = begin; i < end; i += kRun) {
      const int64_t at = n * size + i;
      run(x + n % period * size + i, first + at, second ? second + at : nullptr, contribution + at,
          std::min(kRun, end - i), &measure);
    }
    partial[n * tasks_of(size) + task] = measure.value();
  });
  reduce(partial, statistics, samples);
}

template void gate(const float*, const float*, const float*, float*, Statistics*, int64_t, int64_t,
                   int64_t, Gate);
template void gate(const double*, const double*, const double*, double*, Statistics*, int64_t,
                   int64_t, int64_t, Gate);

}  // namespace rapkernels::cpu
