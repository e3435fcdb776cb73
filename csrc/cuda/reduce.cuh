// Sums over the threads of a block, in a fixed order: the same input gives the same bits.
#pragma once

#include "../kernels.h"
#include "../numerics.h"
#include "launch.h"

namespace rapkernels::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;

// What a kernel reduces per sample: nothing, a sum, or the statistics of what it wrote. Shared
// memory takes no constructors, so `{}` makes the zeros.
struct Nothing {
  __device__ void operator+=(const Nothing&) {}
};

struct Sum {
  double value;

  __device__ void add(double v) { value += v; }
  __device__ void operator+=(const Sum& other) { value += other.value; }
};

struct Measure {
  double sum;
  double count;
  double largest;

  template <typename A>
  __device__ void add(A v) {
    const A size = magnitude(v);
    sum += static_cast<double>(v);
    count += v != A(0) ? 1.0 : 0.0;
    largest = static_cast<double>(size) > largest ? static_cast<double>(size) : largest;
  }
  __device__ void operator+=(const Measure& other) {
    sum += other.sum;
    count += other.count;
    largest = other.largest > largest ? other.largest : largest;
  }
};

inline __device__ Nothing shuffled_down(const Nothing& value, int) { return value; }

inline __device__ Sum shuffled_down(const Sum& value, int offset) {
  return {__shfl_down_sync(0xffffffffu, value.value, offset)};
}

inline __device__ Measure shuffled_down(const Measure& value, int offset) {
  return {__shfl_down_sync(0xffffffffu, value.sum, offset),
          __shfl_down_sync(0xffffffffu, value.count, offset),
          __shfl_down_sync(0xffffffffu, value.largest, offset)};
}

// The sum over all kThreads threads of a block, complete in thread 0. Once in a kernel: a second
// call would need a barrier before it.
template <typename Reduced>
__device__ Reduced block_sum(Reduced value) {
  __shared__ Reduced of_warp[kThreads / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += shuffled_down(value, offset);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x % kWarp == 0) of_warp[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / kWarp; ++w) value += of_warp[w];
  }
  return value;
}

template <>
inline __device__ Nothing block_sum(Nothing value) {
  return value;
}

inline __device__ void write(const Sum& from, double* to) { *to = from.value; }
inline __device__ void write(const Measure& from, Statistics* to) {
  *to = {from.sum, from.count, from.largest};
}

}  // namespace rapkernels::cuda
