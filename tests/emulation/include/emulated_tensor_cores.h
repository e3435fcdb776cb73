// Stands in for the instructions of csrc/cuda/tensor_cores.cuh, with the meaning that PTX gives
// them, at the level of registers: each lane brings and gets what it does on a GPU.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

namespace emulation {

// What the lanes of each warp of a block show one another.
struct Registers {
  uint32_t a[4];
  uint32_t b[2];
  const void* row;
};
inline Registers registers[1024];

struct Copy {
  void* to;
  const void* from;
  bool valid;
};
struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
inline Copies copies[1024];

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "emulated CUDA: %s (thread %u of block %u)\n", what, threadIdx.x,
               blockIdx.x);
  std::abort();
}

inline void do_copy(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

// Half of the copies arrive at once, half when they are waited for: both are allowed.
inline void copy_unit(void* to, const void* from, bool valid) {
  static uint32_t random = 1;
  random = random * 1664525u + 1013904223u;
  const Copy copy{to, from, valid};
  require(reinterpret_cast<uintptr_t>(to) % 16 == 0, "a copy to an address that is not aligned");
  require(!valid || reinterpret_cast<uintptr_t>(from) % 16 == 0,
          "a copy from an address that is not aligned");
  if (random >> 31) {
    do_copy(copy);
  } else {
    copies[threadIdx.x].open.push_back(copy);
  }
}

inline void end_group() {
  Copies& own = copies[threadIdx.x];
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}

inline void wait_for_groups(int pending) {
  auto& groups = copies[threadIdx.x].groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy& copy : groups.front()) do_copy(copy);
    groups.pop_front();
  }
}

inline const Registers& of_lane(int lane) { return registers[threadIdx.x / 32 * 32 + lane]; }

inline void load_matrices(uint32_t (&to)[4], const void* row, EMULATION_PLACE) {
  require(reinterpret_cast<uintptr_t>(row) % 16 == 0, "ldmatrix of a row that is not aligned");
  registers[threadIdx.x].row = row;
  meet(Scope::kWarp, EMULATION_HERE, 0xffffffffu);
  for (int m = 0; m < 4; ++m) {
    const auto* from = static_cast<const char*>(of_lane(8 * m + lane() / 4).row);
    std::memcpy(&to[m], from + lane() % 4 * 4, 4);
  }
  meet(Scope::kWarp, EMULATION_HERE, 0xffffffffu);
}

inline void load_transposed(uint32_t (&to)[4], const void* row, EMULATION_PLACE) {
  require(reinterpret_cast<uintptr_t>(row) % 16 == 0, "ldmatrix of a row that is not aligned");
  registers[threadIdx.x].row = row;
  meet(Scope::kWarp, EMULATION_HERE, 0xffffffffu);
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const auto* from = static_cast<const char*>(of_lane(8 * m + lane() % 4 * 2 + i).row);
      std::memcpy(&pair[i], from + lane() / 4 * 2, 2);
    }
    std::memcpy(&to[m], pair, 4);
  }
  meet(Scope::kWarp, EMULATION_HERE, 0xffffffffu);
}

// Entry e of a register: TF32 has the first 19 bits of a float.
struct TF32 {};
template <typename T>
double entry(uint32_t bits, int e) {
  if constexpr (std::is_same_v<T, TF32>) {
    bits &= ~0x1fffu;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  } else {
    T pair[2];
    std::memcpy(static_cast<void*>(pair), &bits, 4);
    return static_cast<float>(pair[e]);
  }
}

template <typename T>
void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Place& place) {
  constexpr int entries = std::is_same_v<T, TF32> ? 1 : 2;
  Registers& own = registers[threadIdx.x];
  std::memcpy(own.a, a, sizeof(a));
  std::memcpy(own.b, b, sizeof(b));
  meet(Scope::kWarp, place, 0xffffffffu);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4, column = lane() % 4 * 2 + i % 2;
    double total = sum[i];
    for (int unit = 0; unit < 2; ++unit) {
      for (int t = 0; t < 4; ++t) {
        for (int e = 0; e < entries; ++e) {
          total += entry<T>(of_lane(row * 4 + t).a[2 * unit + i / 2], e) *
                   entry<T>(of_lane(column * 4 + t).b[unit], e);
        }
      }
    }
    sum[i] = static_cast<float>(total);
  }
  meet(Scope::kWarp, place, 0xffffffffu);
}

inline void multiply_bfloat16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              EMULATION_PLACE) {
  multiply<c10::BFloat16>(sum, a, b, EMULATION_HERE);
}
inline void multiply_float16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             EMULATION_PLACE) {
  multiply<c10::Half>(sum, a, b, EMULATION_HERE);
}
inline void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                          EMULATION_PLACE) {
  multiply<TF32>(sum, a, b, EMULATION_HERE);
}

// To nearest, ties away from 0.
inline void to_tf32(uint32_t& rounded, uint32_t value) { rounded = (value + 0x1000u) & ~0x1fffu; }

inline void signs_of_pair(uint32_t& signs, uint32_t pair) {
  signs = (pair & 0x8000u ? 0xffffu : 0u) | (pair & 0x80000000u ? 0xffff0000u : 0u);
}

}  // namespace emulation
