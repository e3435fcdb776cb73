// csrc/cuda/launch.cpp for the CPU: what the kernels need of the host.
#include "cuda/launch.h"

#include <c10/util/Exception.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

namespace rapkernels::cuda {

cudaStream_t current_stream() { return nullptr; }

bool has_tensor_cores() { return true; }

bool is_capturing() { return false; }

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void check(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, what,
              ": the CUDA launch failed: ", cudaGetErrorString(status));
}

// Memory of its own, so that address sanitizer sees its bounds, aligned as CUDA does and full of
// NaN, so that what is read before it was written shows.
Workspace::Workspace(int64_t bytes) : memory_(nullptr) {
  if (bytes <= 0) return;
  const auto size = static_cast<size_t>(bytes);
  TORCH_CHECK(posix_memalign(&memory_, 256, size) == 0, "no memory for ", bytes, " bytes");
  std::memset(memory_, 0xff, size);
}

Workspace::~Workspace() { std::free(memory_); }

}  // namespace rapkernels::cuda
