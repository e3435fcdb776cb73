#include "launch.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

namespace rapkernels::cuda {

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

bool has_tensor_cores() {
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device), "has_tensor_cores");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "has_tensor_cores");
  return major >= 8;
}

void check(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, what,
              ": the CUDA launch failed: ", cudaGetErrorString(status));
}

Workspace::Workspace(int64_t bytes)
    : memory_(bytes > 0 ? c10::cuda::CUDACachingAllocator::raw_alloc(static_cast<size_t>(bytes))
                        : nullptr) {}

Workspace::~Workspace() {
  if (memory_ != nullptr) c10::cuda::CUDACachingAllocator::raw_delete(memory_);
}

}  // namespace rapkernels::cuda
