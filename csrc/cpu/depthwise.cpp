// Depthwise convolutions: a message is a product of two numbers, whose sign chooses its sum. The
// lanes of a register are channels, and a result is added up in registers, position by position of
// the kernel.
#include "depthwise.h"

#include <ATen/Parallel.h>

#include <vector>

#include "simd.h"

namespace rapkernels::cpu {
namespace {

// A position of the kernel, and where what it meets is along one dimension.
struct Meeting {
  int64_t kernel;
  int64_t other;
};
using Meetings = std::vector<std::vector<Meeting>>;

// What each result meets among the sources, or with `back` each source among the results.
Meetings meetings_of(const SplitAxis& axis, bool back) {
  Meetings all(back ? axis.size : axis.results);
  for (int64_t y = 0; y < axis.results; ++y) {
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t source = y * axis.step + k * axis.dilation - axis.low;
      if (source < 0 || source >= axis.size) continue;
      if (back) {
        all[source].push_back({k, y});
      } else {
        all[y].push_back({k, source});
      }
    }
  }
  return all;
}

// Registers of channels that are added up at a time.
constexpr int kWide = 4;

template <typename T>
using Lanes = typename Vector<T>::type;

// The first `size` lanes; the others are zero.
template <typename T>
RAPKERNELS_INLINE Lanes<T> load(const T* from, int64_t size) {
  Lanes<T> v{};
  if (size >= Vector<T>::lanes) {
    std::memcpy(&v, from, sizeof(v));
  } else {
    for (int64_t i = 0; i < size; ++i) v[i] = from[i];
  }
  return v;
}

template <typename T>
RAPKERNELS_INLINE void store(Lanes<T> v, int64_t size, T* to) {
  if (size >= Vector<T>::lanes) {
    std::memcpy(to, &v, sizeof(v));
  } else {
    for (int64_t i = 0; i < size; ++i) to[i] = v[i];
  }
}

// What a row of results or of sources is made of.
struct Row {
  const std::vector<Meeting>& rows;
  const Meetings& columns;
  int64_t other_columns;  // of what it meets
  int64_t kernel_columns;
  int64_t channels;

  // Calls body(where the filter is, where what it meets is) for each meeting of a column.
  template <typename Body>
  RAPKERNELS_INLINE void each(int64_t column, const Body& body) const {
    for (const Meeting& row : rows) {
      for (const Meeting& at : columns[column]) {
        body((row.kernel * kernel_columns + at.kernel) * channels,
             (row.other * other_columns + at.other) * channels);
      }
    }
  }
};

template <typename T, int width>
RAPKERNELS_INLINE void sum_block(const Row& row, int64_t column, const T* filters, const T* x,
                                 int64_t size, T* positive, T* negative) {
  constexpr int64_t lanes = Vector<T>::lanes;
  Lanes<T> up[width] = {};
  Lanes<T> down[width] = {};
  row.each(column, [&](int64_t filter, int64_t other) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < width; ++i) {
      const int64_t at = i * lanes;
      const Lanes<T> message =
          load(filters + filter + at, size - at) * load(x + other + at, size - at);
      const Lanes<T> above = message > 0 ? message : Lanes<T>{};
      up[i] += above;
      down[i] += above - message;
    }
  });
#pragma GCC unroll 4
  for (int i = 0; i < width; ++i) {
    store(up[i], size - i * lanes, positive + i * lanes);
    store(down[i], size - i * lanes, negative + i * lanes);
  }
}

template <typename T, int width>
RAPKERNELS_INLINE void contribution_block(const Row& row, int64_t column, const T* filters,
                                          const T* x, const T* positive, const T* negative,
                                          int64_t size, T* contribution) {
  constexpr int64_t lanes = Vector<T>::lanes;
  Lanes<T> v[width];
  Lanes<T> sum[width] = {};
#pragma GCC unroll 4
  for (int i = 0; i < width; ++i) v[i] = load(x + i * lanes, size - i * lanes);
  row.each(column, [&](int64_t filter, int64_t other) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < width; ++i) {
      const int64_t at = i * lanes;
      const Lanes<T> message = load(filters + filter + at, size - at) * v[i];
      const Lanes<T> magnitude = message > 0 ? message : -message;
      const Lanes<T> up = load(positive + other + at, size - at);
      const Lanes<T> down = load(negative + other + at, size - at);
      sum[i] += magnitude * (message > 0 ? up : down);
    }
  });
#pragma GCC unroll 4
  for (int i = 0; i < width; ++i) store(sum[i], size - i * lanes, contribution + i * lanes);
}

// A register's worth of channels at a time after the last whole block of them.
#define RAPKERNELS_EACH_BLOCK(T, CHANNELS, CALL)                                        \
  {                                                                                     \
    int64_t c = 0;                                                                      \
    for (; c + kWide * Vector<T>::lanes <= (CHANNELS); c += kWide * Vector<T>::lanes) { \
      constexpr int width = kWide;                                                      \
      constexpr int64_t size = kWide * Vector<T>::lanes;                                \
      CALL;                                                                             \
    }                                                                                   \
    for (; c + Vector<T>::lanes <= (CHANNELS); c += Vector<T>::lanes) {                 \
      constexpr int width = 1;                                                          \
      constexpr int64_t size = Vector<T>::lanes;                                        \
      CALL;                                                                             \
    }                                                                                   \
    if (c < (CHANNELS)) {                                                               \
      constexpr int width = 1;                                                          \
      const int64_t size = (CHANNELS) - c;                                              \
      CALL;                                                                             \
    }                                                                                   \
  }

template <typename T>
RAPKERNELS_CLONES void sum_row(const Row& row, const T* filters, const T* x, T* positive,
                               T* negative) {
  const auto columns = static_cast<int64_t>(row.columns.size());
  for (int64_t i = 0; i < columns; ++i) {
    const int64_t at = i * row.channels;
    RAPKERNELS_EACH_BLOCK(T, row.channels,
                          (sum_block<T, width>(row, i, filters + c, x + c, size, positive + at + c,
                                               negative + at + c)))
  }
}

template <typename T>
RAPKERNELS_CLONES void contribution_row(const Row& row, const T* filters, const T* x,
                                        const T* positive, const T* negative, T* contribution,
                                        Measure<T>* measure) {
  const auto columns = static_cast<int64_t>(row.columns.size());
  for (int64_t i = 0; i < columns; ++i) {
    const int64_t at = i * row.channels;
    RAPKERNELS_EACH_BLOCK(
        T, row.channels,
        (contribution_block<T, width>(row, i, filters + c, x + at + c, positive + c, negative + c,
                                      size, contribution + at + c)))
  }
  const int64_t size = columns * row.channels;
  for (int64_t i = 0; i < size; ++i) contribution[i] = finite_or_zero(contribution[i]);
  measure->add(contribution, size);
}

}  // namespace

template <typename T>
void depthwise_sums(const Depthwise<T>& conv, const T* x, int64_t samples, T* positive,
                    T* negative) {
  const auto& [height, width] = conv.axes;
  const Meetings rows = meetings_of(height, false);
  const Meetings columns = meetings_of(width, false);
  const int64_t source = height.size * width.size * conv.channels;
  const int64_t result = width.results * conv.channels;
  const int64_t sources = width.size;
  const int64_t results = height.results;
  const int64_t kernel = width.kernel;
  at::parallel_for(0, samples * results, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Row row{rows[i % results], columns, sources, kernel, conv.channels};
      sum_row(row, conv.filters, x + i / results * source, positive + i * result,
              negative + i * result);
    }
  });
}

template <typename T>
void depthwise_contribution(const Depthwise<T>& conv, const T* x, int64_t period, const T* positive,
                            const T* negative, int64_t samples, T* contribution,
                            Statistics* statistics) {
  const auto& [height, width] = conv.axes;
  const Meetings rows = meetings_of(height, true);
  const Meetings columns = meetings_of(width, true);
  const int64_t source = width.size * conv.channels;
  const int64_t sources = height.size;
  const int64_t result = height.results * width.results * conv.channels;
  const int64_t results = width.results;
  const int64_t kernel = width.kernel;
  std::vector<Statistics> partial(samples * sources);
  at::parallel_for(0, samples * sources, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / sources;
      const Row row{rows[i % sources], columns, results, kernel, conv.channels};
      Measure<T> measure;
      contribution_row(row, conv.filters, x + (n % period * sources + i % sources) * source,
                       positive + n * result, negative + n * result, contribution + i * source,
                       &measure);
      partial[i] = measure.value();
    }
  });
  reduce(partial, statistics, samples);
}

#define RAPKERNELS_INSTANTIATE(T)                                                                  \
  template void depthwise_sums(const Depthwise<T>&, const T*, int64_t, T*, T*);                    \
  template void depthwise_contribution(const Depthwise<T>&, const T*, int64_t, const T*, const T*, \
                                       int64_t, T*, Statistics*);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
