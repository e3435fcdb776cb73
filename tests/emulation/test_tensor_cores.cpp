// The emulated instructions of tensor_cores.cuh: what a warp makes of matrices is compared with
// plain loops over their entries.
#include "cuda/tensor_cores.cuh"

#include <cmath>
#include <set>
#include <vector>

#include "../cpp/check.h"

namespace rapkernels::cuda {
namespace {

template <typename... Parameters, typename... Arguments>
cudaError_t launch_one(void (*kernel)(Parameters...), unsigned threads, size_t shared,
                       Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

float entry(int row, int column) { return static_cast<float>((row * 7 + column * 3) % 11) - 4.0f; }

// a is 16 x (two units), b is 8 columns of as many entries, each a row in memory.
template <typename P>
__global__ void multiply_once(const typename P::In* a, const typename P::In* b, float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  char* const memory = dynamic_memory();
  char* const columns = memory + 16 * 2 * kUnit;
  const auto* from_a = reinterpret_cast<const char*>(a);
  const auto* from_b = reinterpret_cast<const char*>(b);
  copy_unit(memory + lane * kUnit, from_a + lane * kUnit, true);
  if (lane < 16) copy_unit(columns + lane * kUnit, from_b + lane * kUnit, true);
  end_group();
  wait_for_groups<0>();
  __syncthreads();
  uint32_t left[4], right[4];
  load_matrices(left, memory + (lane % 16 * 2 + lane / 16) * kUnit);
  load_matrices(right, columns + (lane % 8 * 2 + lane / 8 % 2) * kUnit);
  const uint32_t first[2] = {right[0], right[1]};
  float sum[4] = {1, 1, 1, 1};
  P::multiply(sum, P::prepare(left), P::prepare(first));
  for (int i = 0; i < 4; ++i) {
    out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
  }
}

template <typename P>
void products_are_those_of_matrices() {
  using In = typename P::In;
  constexpr int depth = 2 * Entries<In>::in_unit;
  alignas(16) In a[16 * depth], b[8 * depth];
  for (int k = 0; k < depth; ++k) {
    for (int row = 0; row < 16; ++row) a[row * depth + k] = static_cast<In>(entry(row, k));
    for (int column = 0; column < 8; ++column) {
      b[column * depth + k] = static_cast<In>(entry(k, column + 5));
    }
  }
  std::vector<float> out(16 * 8);
  CHECK(launch_one(multiply_once<P>, 32, 24 * 2 * kUnit, a, b, out.data()) == cudaSuccess);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 1;
      for (int k = 0; k < depth; ++k) expected += entry(row, k) * entry(k, column + 5);
      CHECK(out[row * 8 + column] == expected);
    }
  }
}

// What TF32 takes of a float, and that three products of it take nearly all.
template <typename P>
double error_of_a_product() {
  alignas(16) float a[16 * 8] = {}, b[8 * 8] = {};
  a[0] = 1.0f + 0x1p-12f + 0x1p-20f;
  b[0] = 3.0f - 0x1p-11f;
  std::vector<float> out(16 * 8);
  launch_one(multiply_once<P>, 32, 24 * 2 * kUnit, a, b, out.data());
  const double expected = 1.0 + static_cast<double>(a[0]) * static_cast<double>(b[0]);
  return std::abs(out[0] - expected) / expected;
}

__global__ void transpose(const uint16_t* from, uint16_t* to) {
  const int lane = static_cast<int>(threadIdx.x);
  char* const memory = dynamic_memory();
  copy_unit(memory + lane * kUnit, from + lane * 8, true);
  end_group();
  wait_for_groups<0>();
  __syncthreads();
  uint32_t found[4];
  load_transposed(found, memory + lane * kUnit);
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int e = 0; e < 2; ++e) {
      to[matrix * 64 + lane / 4 * 8 + lane % 4 * 2 + e] =
          static_cast<uint16_t>(found[matrix] >> (16 * e));
    }
  }
}

void matrices_are_transposed() {
  alignas(16) uint16_t from[4 * 64];
  for (int i = 0; i < 4 * 64; ++i) from[i] = static_cast<uint16_t>(i);
  std::vector<uint16_t> to(4 * 64);
  launch_one(transpose, 32, 32 * kUnit, from, to.data());
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int i = 0; i < 64; ++i) CHECK(to[matrix * 64 + i] == matrix * 64 + i % 8 * 8 + i / 8);
  }
}

// Two groups, of which the last may be under way.
__global__ void copy_late(const float* from, float* first, float* second, bool valid) {
  char* const memory = dynamic_memory();
  copy_unit(memory, from, valid);
  end_group();
  copy_unit(memory + kUnit, from, valid);
  end_group();
  wait_for_groups<1>();
  *first = reinterpret_cast<float*>(memory)[0];
  *second = reinterpret_cast<float*>(memory + kUnit)[0];
  wait_for_groups<0>();
}

void copies_arrive_when_they_are_waited_for() {
  alignas(16) const float from[4] = {3, 0, 0, 0};
  std::set<bool> arrived;
  for (int i = 0; i < 40; ++i) {
    float first = 0, second = 0;
    launch_one(copy_late, 1, 2 * kUnit, from, &first, &second, true);
    CHECK(first == 3);
    arrived.insert(second == 3);
    launch_one(copy_late, 1, 2 * kUnit, nullptr, &first, &second, false);
    CHECK(first == 0);
  }
  CHECK(arrived.size() == 2);
}

void entries_are_split_by_sign() {
  const float values[] = {1.5f, -2.25f, 0.0f, -0.0f};
  for (const float a : values) {
    for (const float b : values) {
      const c10::BFloat16 pair[2] = {c10::BFloat16(a), c10::BFloat16(b)};
      uint32_t entries = 0, positive = 0, negative = 0;
      std::memcpy(&entries, pair, sizeof(entries));
      Entries<c10::BFloat16>::split(entries, positive, negative);
      c10::BFloat16 up[2], down[2];
      std::memcpy(static_cast<void*>(up), &positive, sizeof(positive));
      std::memcpy(static_cast<void*>(down), &negative, sizeof(negative));
      CHECK(up[0] == std::fmax(a, 0.0f) && up[1] == std::fmax(b, 0.0f));
      CHECK(down[0] == std::fmax(-a, 0.0f) && down[1] == std::fmax(-b, 0.0f));
    }
    uint32_t positive = 0, negative = 0;
    Entries<float>::split(bits_of(a), positive, negative);
    CHECK(float_of(positive) == std::fmax(a, 0.0f) && float_of(negative) == std::fmax(-a, 0.0f));
  }
}

__global__ void write_all(size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) dynamic_memory()[i] = 1;
}

void shared_memory_has_its_limits() {
  const size_t usual = 48 << 10;
  CHECK(launch_one(write_all, 1, usual, usual) == cudaSuccess);
  CHECK(launch_one(write_all, 1, usual + 1, usual) == cudaErrorInvalidValue);
  const auto* kernel = reinterpret_cast<const void*>(&write_all);
  const auto what = cudaFuncAttributeMaxDynamicSharedMemorySize;
  CHECK(cudaFuncSetAttribute(kernel, what, 100 << 10) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(kernel, what, 64 << 10) == cudaSuccess);
  CHECK(launch_one(write_all, 1, 64 << 10, size_t{64 << 10}) == cudaSuccess);
}

}  // namespace
}  // namespace rapkernels::cuda

int main() {
  using namespace rapkernels::cuda;
  products_are_those_of_matrices<BFloat16Product>();
  products_are_those_of_matrices<Float16Product>();
  products_are_those_of_matrices<TF32Product>();
  products_are_those_of_matrices<TF32x3Product>();
  CHECK(error_of_a_product<TF32Product>() > 1e-5 && error_of_a_product<TF32Product>() < 1e-3);
  CHECK(error_of_a_product<TF32x3Product>() < 3e-7);
  matrices_are_transposed();
  copies_arrive_when_they_are_waited_for();
  entries_are_split_by_sign();
  shared_memory_has_its_limits();
  return report();
}
