// The uniform shift and the scaled storage of relevance: measure, store, apply, merge.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "simd.h"

namespace rapkernels::cpu {
namespace {

template <typename T>
RAPKERNELS_CLONES void measure_run(const T* values, int64_t size, Measure<T>* measure) {
  measure->add(values, size);
}

template <typename T>
RAPKERNELS_CLONES void scale_run(const T* values, double factor, T* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<T>(static_cast<double>(values[i]) * factor);
  }
}

template <typename T>
RAPKERNELS_CLONES void apply_run(const T* values, T psi, double scale, T largest, T* out,
                                 int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const T r = static_cast<T>(static_cast<double>(shifted(values[i], psi)) * scale);
    out[i] = r > largest ? largest : (r < -largest ? -largest : r);
  }
}

template <typename T>
RAPKERNELS_CLONES void merge_run(const T* a, T psi_a, T factor_a, const T* b, T psi_b, T factor_b,
                                 T* sum, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    sum[i] = finite_or_zero(shifted(a[i], psi_a) * factor_a + shifted(b[i], psi_b) * factor_b);
  }
}

}  // namespace

template <typename T>
void measure(const T* values, Statistics* statistics, int64_t samples, int64_t size) {
  std::vector<Statistics> partial(samples * tasks_of(size));
  for_each_task(samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Measure<T> all;
    measure_run(values + n * size + begin, end - begin, &all);
    partial[n * tasks_of(size) + task] = all.value();
  });
  reduce(partial, statistics, samples);
}

// stored = values * factor in the storage type; the statistics are of what was stored, so that the
// shift and its mask agree with what the next kernel reads. In place nothing changes by a factor 1.
template <typename T, typename Stored>
void store_as(const T* values, const double* factor, Stored* stored, Statistics* statistics,
              int64_t samples, int64_t size) {
  const auto unchanged = [&](int64_t n) {
    return static_cast<const void*>(stored) == values && factor[n] == 1.0;
  };
  std::vector<Statistics> partial(samples * tasks_of(size));
  for_each_task(samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    if (unchanged(n)) return;
    T buffer[kRun];
    Measure<T> all;
    for (int64_t i = begin; i < end; i += kRun) {
      const int64_t at = n * size + i;
      const int64_t length = std::min(kRun, end - i);
      scale_run(values + at, factor[n], buffer, length);
      for (int64_t k = 0; k < length; ++k) {
        stored[at + k] = static_cast<Stored>(buffer[k]);
        buffer[k] = static_cast<T>(stored[at + k]);
      }
      measure_run(buffer, length, &all);
    }
    partial[n * tasks_of(size) + task] = all.value();
  });
  std::vector<Statistics> measured(samples);
  reduce(partial, measured.data(), samples);
  for (int64_t n = 0; n < samples; ++n) {
    if (!unchanged(n)) statistics[n] = measured[n];
  }
}

template <typename T>
void store(const T* values, const double* factor, void* stored, Storage storage,
           Statistics* statistics, int64_t samples, int64_t size) {
  const auto as = [&](auto* typed) { store_as(values, factor, typed, statistics, samples, size); };
  switch (storage) {
    case Storage::kFloat64:
      return as(static_cast<double*>(stored));
    case Storage::kFloat32:
      return as(static_cast<float*>(stored));
    case Storage::kBFloat16:
      return as(static_cast<c10::BFloat16*>(stored));
    case Storage::kFloat16:
      return as(static_cast<c10::Half*>(stored));
  }
}

template <typename T>
void apply_shift(const T* values, const double* psi, const double* scale, T* relevance,
                 double largest, int64_t samples, int64_t size) {
  for_each_task(samples, size, [&](int64_t n, int64_t, int64_t begin, int64_t end) {
    const int64_t at = n * size + begin;
    apply_run(values + at, static_cast<T>(psi_of(psi, n)), scale ? scale[n] : 1.0,
              static_cast<T>(largest), relevance + at, end - begin);
  });
}

template <typename T>
void merge(const T* a, const double* psi_a, const double* factor_a, const T* b, const double* psi_b,
           const double* factor_b, T* sum, int64_t samples, int64_t size) {
  for_each_task(samples, size, [&](int64_t n, int64_t, int64_t begin, int64_t end) {
    const int64_t at = n * size + begin;
    merge_run(a + at, static_cast<T>(psi_of(psi_a, n)), static_cast<T>(factor_a[n]), b + at,
              static_cast<T>(psi_of(psi_b, n)), static_cast<T>(factor_b[n]), sum + at, end - begin);
  });
}

#define RAPKERNELS_INSTANTIATE(T)                                                                  \
  template void measure(const T*, Statistics*, int64_t, int64_t);                                  \
  template void apply_shift(const T*, const double*, const double*, T*, double, int64_t, int64_t); \
  template void merge(const T*, const double*, const double*, const T*, const double*,             \
                      const double*, T*, int64_t, int64_t);                                        \
  template void store(const T*, const double*, void*, Storage, Statistics*, int64_t, int64_t);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
