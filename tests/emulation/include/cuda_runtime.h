// Stands in for CUDA's header where csrc/cuda is compiled for the CPU: the part of it that the
// kernels use, with the meaning that NVIDIA's guide gives it. emulation.cpp runs the blocks.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after the other, so that one copy is enough. A block finds what the last one left.
#define __shared__ static

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// CUDA's vector of words, aligned as a wide access needs it.
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Those of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

enum class Scope { kBlock, kWarp };

// A call at which threads wait for one another.
struct Place {
  const char* name;
  const char* file;
  int line;
};

// What a thread learns when all have come.
struct Meeting {
  uint64_t value;   // what the thread at the source lane brought; all ones where there is none
  unsigned ballot;  // lanes of the warp that brought something other than 0
  int votes;        // threads that brought something other than 0
  int arrived;      // threads that came
};

// Lets the calling thread wait until every living thread of the block, or of those in its warp that
// `mask` names, waits at the same place with the same mask.
Meeting meet(Scope scope, const Place& place, unsigned mask = 0, uint64_t value = 0,
             int source = 0);

// Runs body(context) once for each thread; `shared` bytes of dynamic shared memory.
void run(unsigned blocks, unsigned threads, size_t shared, void (*body)(void*), void* context);

// The dynamic shared memory of the block that runs, of exactly as many bytes as its launch asked
// for.
char* dynamic_memory();

// What a kernel may ask for, which is 48 KiB until it is set.
size_t& most_dynamic_memory(const void* kernel);

inline int lane() { return static_cast<int>(threadIdx.x % 32); }

template <typename T>
T shuffle(const Place& place, unsigned mask, T value, int source) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) <= sizeof(uint64_t), "not shuffled");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet(Scope::kWarp, place, mask, bits, source).value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline Meeting vote(Scope scope, const Place& place, unsigned mask, bool predicate) {
  return meet(scope, place, mask, predicate);
}

}  // namespace emulation

// Every call knows where it stands, to tell one barrier from another.
#define EMULATION_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATION_HERE (emulation::Place{__func__, file, line})

inline void __syncthreads(EMULATION_PLACE) {
  emulation::meet(emulation::Scope::kBlock, EMULATION_HERE);
}
inline int __syncthreads_or(int predicate, EMULATION_PLACE) {
  return emulation::vote(emulation::Scope::kBlock, EMULATION_HERE, 0, predicate).votes > 0;
}
inline int __syncthreads_and(int predicate, EMULATION_PLACE) {
  const auto met = emulation::vote(emulation::Scope::kBlock, EMULATION_HERE, 0, predicate);
  return met.votes == met.arrived;
}
inline int __syncthreads_count(int predicate, EMULATION_PLACE) {
  return emulation::vote(emulation::Scope::kBlock, EMULATION_HERE, 0, predicate).votes;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_PLACE) {
  emulation::meet(emulation::Scope::kWarp, EMULATION_HERE, mask);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_PLACE) {
  return emulation::vote(emulation::Scope::kWarp, EMULATION_HERE, mask, predicate).ballot;
}
inline int __any_sync(unsigned mask, int predicate, EMULATION_PLACE) {
  return emulation::vote(emulation::Scope::kWarp, EMULATION_HERE, mask, predicate).votes > 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATION_PLACE) {
  const auto met = emulation::vote(emulation::Scope::kWarp, EMULATION_HERE, mask, predicate);
  return met.votes == met.arrived;
}

// Lanes exchange within groups of `width`; one that would read outside of its group reads itself.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_PLACE) {
  const int first = emulation::lane() & ~(width - 1);
  return emulation::shuffle(EMULATION_HERE, mask, value, first + (source & (width - 1)));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_PLACE) {
  const int lane = emulation::lane(), source = lane - static_cast<int>(delta);
  const int first = lane & ~(width - 1);
  return emulation::shuffle(EMULATION_HERE, mask, value, source < first ? lane : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_PLACE) {
  const int lane = emulation::lane(), source = lane + static_cast<int>(delta);
  const int last = lane | (width - 1);
  return emulation::shuffle(EMULATION_HERE, mask, value, source > last ? lane : source);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = 32, EMULATION_PLACE) {
  const int lane = emulation::lane(), source = lane ^ flipped;
  const int last = lane | (width - 1);
  return emulation::shuffle(EMULATION_HERE, mask, value, source > last ? lane : source);
}

// Only one thread runs at a time, so that any access is atomic.
template <typename T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  const T before = *address;
  *address = before + value;
  return before;
}
template <typename T>
T atomicMax(T* address, std::common_type_t<T> value) {
  const T before = *address;
  *address = before < value ? value : before;
  return before;
}

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorInvalidConfiguration,
  cudaErrorNotSupported
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    default:
      return "operation not supported by the emulation";
  }
}

using cudaStream_t = struct CUstream_st*;
struct cudaLaunchAttribute;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

// Of compute capability 8.6 and 12.0, the least of those that have tensor cores for all types.
constexpr size_t kMostSharedMemory = 99 * 1024;

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<size_t>(value) > kMostSharedMemory) return cudaErrorInvalidValue;
  emulation::most_dynamic_memory(kernel) = static_cast<size_t>(value);
  return cudaSuccess;
}

// The kernel has run when this returns.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel's parameters take up to 4 KiB");
  static_assert((std::is_trivially_copyable<Parameters>::value && ...), "copied to the device");
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  const bool flat = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
  if (!flat || config->numAttrs != 0) return cudaErrorNotSupported;
  const size_t shared = config->dynamicSmemBytes;
  if (shared > emulation::most_dynamic_memory(reinterpret_cast<const void*>(kernel)))
    return cudaErrorInvalidValue;
  if (grid.x < 1 || grid.x > INT_MAX || block.x < 1 || block.x > 1024)
    return cudaErrorInvalidConfiguration;
  auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  emulation::run(
      grid.x, block.x, shared, [](void* context) { (*static_cast<decltype(body)*>(context))(); },
      &body);
  return cudaSuccess;
}
