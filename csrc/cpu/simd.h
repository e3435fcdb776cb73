// What the CPU kernels share: function multi-versioning, explicit vectors, fixed-order reductions.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../kernels.h"
#include "../numerics.h"

// One clone per x86-64 level, chosen by the loader. Sanitizers instrument the resolver, which then
// runs before their start-up, so they take the default clone.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define RAPKERNELS_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define RAPKERNELS_HAS_CLONES 1
#else
#define RAPKERNELS_CLONES
#define RAPKERNELS_HAS_CLONES 0
#endif

#define RAPKERNELS_INLINE inline __attribute__((always_inline))

namespace rapkernels::cpu {

// 64 bytes: one AVX-512 register; the compiler splits it where registers are narrower.
template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef double wide __attribute__((vector_size(128)));
  typedef int32_t mask __attribute__((vector_size(64)));
  static constexpr int64_t lanes = 16;
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(64)));
  typedef double wide __attribute__((vector_size(64)));
  typedef int64_t mask __attribute__((vector_size(64)));
  static constexpr int64_t lanes = 8;
};

// Asks for the line `ahead` elements on, which may lie beyond the tensor: nothing is read.
template <typename T>
RAPKERNELS_INLINE void prefetch(const T* at, int64_t ahead) {
  const auto address = reinterpret_cast<uintptr_t>(at) + static_cast<uintptr_t>(ahead) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(address));
}

// Elements that a kernel works on between two looks at its reductions: three operands fit in L1.
constexpr int64_t kRun = 1024;
// Elements of one task. Fixed, so that the order of a sum does not depend on the thread count.
constexpr int64_t kTask = 16 * kRun;

inline int64_t tasks_of(int64_t size) { return (size + kTask - 1) / kTask; }

// Calls body(sample, task, begin, end) for every task of every sample.
template <typename Body>
void for_each_task(int64_t samples, int64_t size, const Body& body) {
  const int64_t tasks = tasks_of(size);
  at::parallel_for(0, samples * tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t task = i % tasks;
      body(i / tasks, task, task * kTask, std::min(size, (task + 1) * kTask));
    }
  });
}

// Running sum of one task, in double, in a fixed order of lanes.
template <typename T>
struct Sum {
  typename Vector<T>::wide lanes{};
  double rest = 0;

  RAPKERNELS_INLINE void add(const T* values, int64_t size) {
    using V = Vector<T>;
    int64_t i = 0;
    for (; i + V::lanes <= size; i += V::lanes) {
      typename V::type v;
      std::memcpy(&v, values + i, sizeof(v));
      lanes += __builtin_convertvector(v, typename V::wide);
    }
    for (; i < size; ++i) rest += static_cast<double>(values[i]);
  }

  RAPKERNELS_INLINE double value() const {
    double total = rest;
    for (int64_t l = 0; l < Vector<T>::lanes; ++l) total += lanes[l];
    return total;
  }
};

// Running sum, count of non-zeros and largest magnitude of one task.
template <typename T>
struct Measure {
  typename Vector<T>::wide sums{};
  typename Vector<T>::mask counts{};
  typename Vector<T>::type peaks{};
  Statistics rest{0, 0, 0};

  RAPKERNELS_INLINE void add(const T* values, int64_t size) {
    using V = Vector<T>;
    int64_t i = 0;
    for (; i + V::lanes <= size; i += V::lanes) {
      typename V::type v;
      std::memcpy(&v, values + i, sizeof(v));
      sums += __builtin_convertvector(v, typename V::wide);
      counts -= (v != 0);
      const typename V::type m = v < 0 ? -v : v;
      peaks = m > peaks ? m : peaks;
    }
    for (; i < size; ++i) {
      const T v = values[i];
      rest.sum += static_cast<double>(v);
      rest.count += v != T(0);
      rest.largest = std::max(rest.largest, static_cast<double>(magnitude(v)));
    }
  }

  RAPKERNELS_INLINE Statistics value() const {
    Statistics all = rest;
    for (int64_t l = 0; l < Vector<T>::lanes; ++l) {
      all.sum += sums[l];
      all.count += static_cast<double>(counts[l]);
      all.largest = std::max(all.largest, static_cast<double>(peaks[l]));
    }
    return all;
  }
};

// Adds the tasks of each sample up, in order.
inline void reduce(const std::vector<double>& partial, double* out, int64_t samples) {
  const int64_t tasks = samples ? static_cast<int64_t>(partial.size()) / samples : 0;
  for (int64_t n = 0; n < samples; ++n) {
    out[n] = 0;
    for (int64_t t = 0; t < tasks; ++t) out[n] += partial[n * tasks + t];
  }
}

inline void reduce(const std::vector<Statistics>& partial, Statistics* out, int64_t samples) {
  const int64_t tasks = samples ? static_cast<int64_t>(partial.size()) / samples : 0;
  for (int64_t n = 0; n < samples; ++n) {
    out[n] = {0, 0, 0};
    for (int64_t t = 0; t < tasks; ++t) {
      const Statistics& part = partial[n * tasks + t];
      out[n].sum += part.sum;
      out[n].count += part.count;
      out[n].largest = std::max(out[n].largest, part.largest);
    }
  }
}

inline double psi_of(const double* psi, int64_t sample) { return psi ? psi[sample] : 0.0; }

// The biases of elements [begin, begin + size) of a sample.
template <typename T>
inline void spread_bias(const T* bias, const Channels& channels, int64_t begin, int64_t size,
                        T* out) {
  for (int64_t k = 0; k < size;) {
    const int64_t row = (begin + k) / channels.inner;
    const int64_t channel = row % channels.count;
    if (channels.inner == 1) {
      const int64_t length = std::min(size - k, channels.count - channel);
      std::copy_n(bias + channel, length, out + k);
      k += length;
    } else {
      const int64_t length = std::min(size - k, (row + 1) * channels.inner - begin - k);
      std::fill_n(out + k, length, bias[channel]);
      k += length;
    }
  }
}

// values -> values with the pending shift applied.
template <typename T>
RAPKERNELS_INLINE void shift_run(const T* values, T psi, T* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = shifted(values[i], psi);
}

}  // namespace rapkernels::cpu
