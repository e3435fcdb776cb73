// The uniform shift and the scaled storage of relevance: measure, store, apply, merge.
#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

template <typename T>
struct MeasureBody {
  using Reduced = Measure;
  const T* values;
  int64_t size;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Measure& measure) const {
    const auto v = load<width>(values + n * size + i);
    for (int k = 0; k < width; ++k) measure.add(accumulated(v.at[k]));
  }
};

// In place nothing changes by a factor of 1: the sample is left, and its statistics too.
struct Unchanged {
  const double* factor;
  bool in_place;

  __device__ bool operator()(int64_t n) const { return in_place && factor[n] == 1.0; }
};

template <typename T, typename Stored>
struct Store {
  using Reduced = Measure;
  const T* values;
  Stored* stored;  // may be `values`
  Unchanged unchanged;
  int64_t size;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Measure& measure) const {
    if (unchanged(n)) return;
    const int64_t at = n * size + i;
    const auto v = load<width>(values + at);
    Pack<Stored, width> out;
    for (int k = 0; k < width; ++k) {
      const double scaled = static_cast<double>(accumulated(v.at[k])) * unchanged.factor[n];
      out.at[k] = static_cast<Stored>(static_cast<Acc<T>>(scaled));
      measure.add(accumulated(out.at[k]));
    }
    store_pack(stored + at, out);
  }
};

template <typename T, typename Stored>
void store_as(const T* values, const double* factor, Stored* stored, Statistics* statistics,
              int64_t samples, int64_t size) {
  constexpr int wide = kAccess / (sizeof(T) > sizeof(Stored) ? sizeof(T) : sizeof(Stored));
  const Unchanged unchanged{factor, static_cast<const void*>(values) == stored};
  reduce_elementwise<wide>(
      "store", Store<T, Stored>{values, stored, unchanged, size}, statistics, samples, size,
      fits(wide, sizeof(T), {size}, {values}) && fits(wide, sizeof(Stored), {size}, {stored}),
      unchanged);
}

template <typename T>
struct Apply {
  using Reduced = Nothing;
  const T* values;
  const double* psi;
  const double* scale;
  T* relevance;
  double largest;
  int64_t size;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Nothing&) const {
    using A = Acc<T>;
    const int64_t at = n * size + i;
    const A shift = static_cast<A>(shift_of(psi, n));
    const A bound = static_cast<A>(largest);
    const double unit = scale == nullptr ? 1.0 : scale[n];
    const auto v = load<width>(values + at);
    Pack<T, width> out;
    for (int k = 0; k < width; ++k) {
      const A r = static_cast<A>(static_cast<double>(shifted(accumulated(v.at[k]), shift)) * unit);
      out.at[k] = static_cast<T>(r > bound ? bound : (r < -bound ? -bound : r));
    }
    store_pack(relevance + at, out);
  }
};

template <typename T>
struct Merge {
  using Reduced = Nothing;
  const T* a;
  const double* psi_a;
  const double* factor_a;
  const T* b;
  const double* psi_b;
  const double* factor_b;
  T* sum;
  int64_t size;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Nothing&) const {
    using A = Acc<T>;
    const int64_t at = n * size + i;
    const A shift_a = static_cast<A>(shift_of(psi_a, n));
    const A shift_b = static_cast<A>(shift_of(psi_b, n));
    const A by_a = static_cast<A>(factor_a[n]);
    const A by_b = static_cast<A>(factor_b[n]);
    const auto of_a = load<width>(a + at);
    const auto of_b = load<width>(b + at);
    Pack<T, width> out;
    for (int k = 0; k < width; ++k) {
      out.at[k] = rounded<T>(shifted(accumulated(of_a.at[k]), shift_a) * by_a +
                             shifted(accumulated(of_b.at[k]), shift_b) * by_b);
    }
    store_pack(sum + at, out);
  }
};

}  // namespace

template <typename T>
void measure(const T* values, Statistics* statistics, int64_t samples, int64_t size) {
  constexpr int wide = kAccess / sizeof(T);
  reduce_elementwise<wide>("measure", MeasureBody<T>{values, size}, statistics, samples, size,
                           fits(wide, sizeof(T), {size}, {values}));
}

template <typename T>
void store(const T* values, const double* factor, void* stored, Storage storage,
           Statistics* statistics, int64_t samples, int64_t size) {
  switch (storage) {
    case Storage::kFloat64:
      return store_as(values, factor, static_cast<double*>(stored), statistics, samples, size);
    case Storage::kFloat32:
      return store_as(values, factor, static_cast<float*>(stored), statistics, samples, size);
    case Storage::kBFloat16:
      return store_as(values, factor, static_cast<c10::BFloat16*>(stored), statistics, samples,
                      size);
    case Storage::kFloat16:
      return store_as(values, factor, static_cast<c10::Half*>(stored), statistics, samples, size);
  }
}

template <typename T>
void apply_shift(const T* values, const double* psi, const double* scale, T* relevance,
                 double largest, int64_t samples, int64_t size) {
  constexpr int wide = kAccess / sizeof(T);
  launch_elementwise<wide>("apply_shift", Apply<T>{values, psi, scale, relevance, largest, size},
                           nullptr, samples, size,
                           fits(wide, sizeof(T), {size}, {values, relevance}));
}

template <typename T>
void merge(const T* a, const double* psi_a, const double* factor_a, const T* b, const double* psi_b,
           const double* factor_b, T* sum, int64_t samples, int64_t size) {
  constexpr int wide = kAccess / sizeof(T);
  launch_elementwise<wide>("merge", Merge<T>{a, psi_a, factor_a, b, psi_b, factor_b, sum, size},
                           nullptr, samples, size, fits(wide, sizeof(T), {size}, {a, b, sum}));
}

#define RAPKERNELS_INSTANTIATE(T)                                                                  \
  template void measure(const T*, Statistics*, int64_t, int64_t);                                  \
  template void store(const T*, const double*, void*, Storage, Statistics*, int64_t, int64_t);     \
  template void apply_shift(const T*, const double*, const double*, T*, double, int64_t, int64_t); \
  template void merge(const T*, const double*, const double*, const T*, const double*,             \
                      const double*, T*, int64_t, int64_t);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
