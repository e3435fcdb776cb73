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

bool is_capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(current_stream(), &status), "is_capturing");
  return status != cudaStreamCaptureStatusNone;
}

double seconds_of(const std::function<void()>& work) {
  const cudaStream_t stream = current_stream();
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "seconds_of");
  check(cudaEventCreate(&end), "seconds_of");
  check(cudaEventRecord(begin, stream), "seconds_of");
  work();
  check(cudaEventRecord(end, stream), "seconds_of");
  check(cudaEventSynchronize(end), "seconds_of");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "seconds_of");
  check(cudaEventDestroy(begin), "seconds_of");
  check(cudaEventDestroy(end), "seconds_of");
  return static_cast<double>(milliseconds) * 1e-3;
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
