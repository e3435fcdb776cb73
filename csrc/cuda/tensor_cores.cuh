// Tensor cores and asynchronous copies, of compute capability 8.0 and up. The registers of a matrix
// hold what PTX says ("Matrix Fragments for mma.m16n8k8" and "m16n8k16"): of each row of a unit of
// 16 bytes a lane has 4, so that types of 16 and of 32 bits differ in the instruction alone.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#include "launch.h"

#if defined(RAPKERNELS_EMULATED)
#include "emulated_tensor_cores.h"
#define RAPKERNELS_ARITHMETIC(EMULATED, ...) emulation::EMULATED
#define RAPKERNELS_MEMORY(EMULATED, ...) emulation::EMULATED
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define RAPKERNELS_ARITHMETIC(EMULATED, ...) asm(__VA_ARGS__)
#define RAPKERNELS_MEMORY(EMULATED, ...) asm volatile(__VA_ARGS__ : "memory")
#else
// Older ones are never asked.
#define RAPKERNELS_ARITHMETIC(EMULATED, ...) __trap()
#define RAPKERNELS_MEMORY(EMULATED, ...) __trap()
#endif

namespace rapkernels::cuda {

__device__ __forceinline__ uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

__device__ __forceinline__ float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rows of a tile in shared memory are cut in units: 8 entries of 16 bits, or 4 of 32.
constexpr int kUnit = 16;

#if !defined(RAPKERNELS_EMULATED)
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// A unit from global to shared memory; zeros where it is not `valid`.
__device__ __forceinline__ void copy_unit(void* to, const void* from, bool valid) {
  RAPKERNELS_MEMORY(copy_unit(to, from, valid),
                    "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                    "l"(from), "r"(valid ? kUnit : 0));
}

// The copies of this thread since the last call are a group.
__device__ __forceinline__ void end_group() {
  RAPKERNELS_MEMORY(end_group(), "cp.async.commit_group;" ::);
}

// Waits for the groups of this thread, but for the last `pending`.
template <int pending>
__device__ __forceinline__ void wait_for_groups() {
  RAPKERNELS_MEMORY(wait_for_groups(pending), "cp.async.wait_group %0;" ::"n"(pending));
}

// Four matrices of 8 rows of a unit: lane l names row l % 8 of matrix l / 8, and gets 4 bytes of
// row l / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  RAPKERNELS_MEMORY(
      load_matrices(to, row),
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]),
      "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)));
}

// The same of 16-bit entries, each matrix transposed.
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], const void* row) {
  RAPKERNELS_MEMORY(
      load_transposed(to, row),
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]),
      "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)));
}

// sum (16 x 8) += a (16 rows of two units) times b (8 columns of two units).
#define RAPKERNELS_MULTIPLY(NAME, INSTRUCTION)                                                 \
  __device__ __forceinline__ void NAME(float (&sum)[4], const uint32_t (&a)[4],                \
                                       const uint32_t (&b)[2]) {                               \
    RAPKERNELS_ARITHMETIC(                                                                     \
        NAME(sum, a, b),                                                                       \
        "mma.sync.aligned." INSTRUCTION                                                        \
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(sum[0]),     \
        "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), \
        "r"(b[0]), "r"(b[1]));                                                                 \
  }
RAPKERNELS_MULTIPLY(multiply_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
RAPKERNELS_MULTIPLY(multiply_float16, "m16n8k16.row.col.f32.f16.f16.f32")
RAPKERNELS_MULTIPLY(multiply_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef RAPKERNELS_MULTIPLY

// The nearest value with the 10 bits of TF32's mantissa.
__device__ __forceinline__ uint32_t to_tf32(uint32_t value) {
  uint32_t rounded = 0;
  RAPKERNELS_ARITHMETIC(to_tf32(rounded, value),
                        "cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(float_of(value)));
  return rounded;
}

// All bits of both halves where their first is set.
__device__ __forceinline__ uint32_t signs_of_pair(uint32_t pair) {
  uint32_t signs = 0;
  RAPKERNELS_ARITHMETIC(signs_of_pair(signs, pair),
                        "prmt.b32 %0, %1, %1, 0xbb99;" : "=r"(signs) : "r"(pair));
  return signs;
}

#undef RAPKERNELS_ARITHMETIC
#undef RAPKERNELS_MEMORY

// The bytes that launch_with_memory() gave the block.
__device__ __forceinline__ char* dynamic_memory() {
#if defined(RAPKERNELS_EMULATED)
  return emulation::dynamic_memory();
#else
  extern __shared__ uint4 rapkernels_dynamic_memory[];
  return reinterpret_cast<char*>(rapkernels_dynamic_memory);
#endif
}

// How a register of a type of entries falls apart in the positive ones and the magnitudes of the
// negative ones.
template <typename In>
struct Entries {
  static constexpr int in_unit = kUnit / static_cast<int>(sizeof(In));
  static constexpr uint32_t kMagnitude = sizeof(In) == 2 ? 0x7fff7fffu : 0x7fffffffu;

  static __device__ __forceinline__ void split(uint32_t entries, uint32_t& positive,
                                               uint32_t& negative) {
    const uint32_t signs = sizeof(In) == 2
                               ? signs_of_pair(entries)
                               : static_cast<uint32_t>(static_cast<int32_t>(entries) >> 31);
    positive = entries & ~signs;
    negative = entries & signs & kMagnitude;
  }
};

// How the tensor cores multiply: `In` lies in memory, an Operand is what registers of it become.
// Sums are float.
struct BFloat16Product {
  using In = c10::BFloat16;
  template <int count>
  struct Operand {
    uint32_t at[count];
  };

  template <int count>
  static __device__ __forceinline__ Operand<count> prepare(const uint32_t (&entries)[count]) {
    Operand<count> out;
#pragma unroll
    for (int i = 0; i < count; ++i) out.at[i] = entries[i];
    return out;
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const Operand<4>& a,
                                                  const Operand<2>& b) {
    multiply_bfloat16(sum, a.at, b.at);
  }
};

struct Float16Product : BFloat16Product {
  using In = c10::Half;

  static __device__ __forceinline__ void multiply(float (&sum)[4], const Operand<4>& a,
                                                  const Operand<2>& b) {
    multiply_float16(sum, a.at, b.at);
  }
};

struct TF32Product {
  using In = float;
  template <int count>
  using Operand = BFloat16Product::Operand<count>;

  template <int count>
  static __device__ __forceinline__ Operand<count> prepare(const uint32_t (&entries)[count]) {
    Operand<count> out;
#pragma unroll
    for (int i = 0; i < count; ++i) out.at[i] = to_tf32(entries[i]);
    return out;
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const Operand<4>& a,
                                                  const Operand<2>& b) {
    multiply_tf32(sum, a.at, b.at);
  }
};

// float by three products of TF32: (high + low) (high + low) without low low, which is 2^-22.
struct TF32x3Product {
  using In = float;
  template <int count>
  struct Operand {
    uint32_t high[count];
    uint32_t low[count];
  };

  template <int count>
  static __device__ __forceinline__ Operand<count> prepare(const uint32_t (&entries)[count]) {
    Operand<count> out;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      out.high[i] = to_tf32(entries[i]);
      out.low[i] = to_tf32(bits_of(float_of(entries[i]) - float_of(out.high[i])));
    }
    return out;
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const Operand<4>& a,
                                                  const Operand<2>& b) {
    multiply_tf32(sum, a.low, b.high);
    multiply_tf32(sum, a.high, b.low);
    multiply_tf32(sum, a.high, b.high);
  }
};

}  // namespace rapkernels::cuda
