// The frame of the element-wise kernels: a block works on one chunk of one sample, in 16-byte
// accesses where the operands allow, and leaves a partial result that a second kernel adds up.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "../kernels.h"
#include "../numerics.h"
#include "reduce.cuh"

namespace rapkernels::cuda {

// The type of sums and quotients of a working or storage type.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using Acc = typename Accumulate<T>::type;

// Elements of one block. Fixed, so that the order of a sum does not depend on the GPU.
constexpr int64_t kChunk = 8192;

constexpr int kAccess = 16;  // bytes

template <typename T, int width>
struct alignas(sizeof(T) * width) Pack {
  T at[width];
};

template <int width, typename T>
__device__ __forceinline__ Pack<T, width> load(const T* from) {
  return *reinterpret_cast<const Pack<T, width>*>(from);
}

// nvcc would take the assignment of four words apart, and __stwb() orders memory.
__device__ __forceinline__ void store_words(uint4* to, const uint4& words) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w)
               : "memory");
#else
  *to = words;
#endif
}

template <int width, typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, width>& pack) {
  if constexpr (sizeof(pack) == sizeof(uint4)) {
    uint4 words;
    memcpy(&words, &pack, sizeof(words));
    store_words(reinterpret_cast<uint4*>(to), words);
  } else {
    *reinterpret_cast<Pack<T, width>*>(to) = pack;
  }
}

template <typename T>
__device__ __forceinline__ Acc<T> accumulated(T value) {
  return static_cast<Acc<T>>(value);
}

// Rounded to T; what that takes beyond its range is no message.
template <typename T>
__device__ __forceinline__ T rounded(Acc<T> value) {
  const T narrow = static_cast<T>(value);
  return static_cast<T>(finite_or_zero(static_cast<Acc<T>>(narrow)));
}

inline __device__ double shift_of(const double* psi, int64_t sample) {
  return psi == nullptr ? 0.0 : psi[sample];
}

// The sample of x, of `period` ones, that sample n of the relevance goes with. A grid has fewer
// than 2^31 blocks, so that 32 bits hold both.
inline __device__ int64_t sample_of(int64_t n, int64_t period) {
  return static_cast<uint32_t>(n) % static_cast<uint32_t>(period);
}

// The biases of elements i to i + width of a sample of `size`, 0 without bias.
template <int width, typename T>
__device__ __forceinline__ Pack<Acc<T>, width> load_bias(const T* bias, const Channels& channels,
                                                         int64_t i, int64_t size) {
  Pack<Acc<T>, width> out{};
  if (bias == nullptr) return out;
  int64_t channel, rest;
  if (size <= UINT32_MAX) {
    const auto at = static_cast<uint32_t>(i);
    const auto inner = static_cast<uint32_t>(channels.inner);
    const uint32_t row = at / inner;
    channel = row % static_cast<uint32_t>(channels.count);
    rest = at - row * inner;
  } else {
    channel = i / channels.inner % channels.count;
    rest = i % channels.inner;
  }
  for (int k = 0; k < width; ++k) {
    out.at[k] = accumulated(bias[channel]);
    if (++rest < channels.inner) continue;
    rest = 0;
    channel = channel + 1 < channels.count ? channel + 1 : 0;
  }
  return out;
}

// Whether elements can be read `width` at a time: `size` per sample, any further strides, pointers.
inline bool fits(int width, int64_t bytes, std::initializer_list<int64_t> sizes,
                 std::initializer_list<const void*> pointers) {
  return std::all_of(sizes.begin(), sizes.end(), [&](int64_t s) { return s % width == 0; }) &&
         std::all_of(pointers.begin(), pointers.end(), [&](const void* p) {
           return reinterpret_cast<uintptr_t>(p) % (width * bytes) == 0;
         });
}

// Body: a struct by value with `using Reduced` and
//   template <int width> __device__ void run(int64_t sample, int64_t i, Reduced& sum) const
// for elements i to i + width of a sample.
template <int width, typename Body>
__global__ void __launch_bounds__(kThreads)
    elementwise(const Body body, typename Body::Reduced* partial, int64_t size, int64_t chunks) {
  const int64_t sample = blockIdx.x / chunks;
  const int64_t begin = (blockIdx.x - sample * chunks) * kChunk;
  const int64_t end = begin + kChunk < size ? begin + kChunk : size;
  typename Body::Reduced sum{};
  for (int64_t i = begin + threadIdx.x * width; i < end; i += kThreads * width) {
    body.template run<width>(sample, i, sum);
  }
  sum = block_sum(sum);
  if (partial != nullptr && threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Adds the chunks of one sample up; `kept`, if given, says for which samples the result stays as it
// is.
template <typename Reduced, typename Out, typename Kept>
__global__ void __launch_bounds__(kThreads)
    add_chunks(const Reduced* partial, Out* out, int64_t chunks, const Kept kept) {
  const int64_t sample = blockIdx.x;
  if (kept(sample)) return;
  Reduced sum{};
  for (int64_t c = threadIdx.x; c < chunks; c += kThreads) sum += partial[sample * chunks + c];
  sum = block_sum(sum);
  if (threadIdx.x == 0) write(sum, out + sample);
}

struct KeepNone {
  __device__ bool operator()(int64_t) const { return false; }
};

inline int64_t chunks_of(int64_t size) { return (size + kChunk - 1) / kChunk; }

// Runs `body` over (samples, size), `wide` elements at a time where `aligned`.
template <int wide, typename Body>
void launch_elementwise(const char* name, const Body& body, typename Body::Reduced* partial,
                        int64_t samples, int64_t size, bool aligned) {
  const int64_t chunks = chunks_of(size);
  if (aligned) {
    launch(name, elementwise<wide, Body>, samples * chunks, kThreads, body, partial, size, chunks);
  } else {
    launch(name, elementwise<1, Body>, samples * chunks, kThreads, body, partial, size, chunks);
  }
}

template <int wide, typename Body, typename Out, typename Kept = KeepNone>
void reduce_elementwise(const char* name, const Body& body, Out* out, int64_t samples, int64_t size,
                        bool aligned, const Kept& kept = {}) {
  using Reduced = typename Body::Reduced;
  const int64_t chunks = chunks_of(size);
  const Workspace partial(samples * chunks * static_cast<int64_t>(sizeof(Reduced)));
  launch_elementwise<wide>(name, body, partial.as<Reduced>(), samples, size, aligned);
  launch(name, add_chunks<Reduced, Out, Kept>, samples, kThreads, partial.as<const Reduced>(), out,
         chunks, kept);
}

}  // namespace rapkernels::cuda
