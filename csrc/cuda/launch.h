// What the CUDA kernels need of the host: a stream, checked launches, scratch memory. Nothing here
// names torch, so that a .cu file compiles in seconds; launch.cpp asks torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>

namespace rapkernels::cuda {

// torch's current stream on the current device.
cudaStream_t current_stream();

// Whether the current device has the instructions of tensor_cores.cuh.
bool has_tensor_cores();

// Whether the current stream is captured in a graph: then nothing can be waited for.
bool is_capturing();

// Seconds that the device takes for what `work` puts on the current stream; waits for it.
double seconds_of(const std::function<void()>& work);

// Raises with the kernel's place unless the launch was accepted.
void check(cudaError_t status, const char* what);

// Scratch memory from torch's allocator, safe to give back while the stream still uses it.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_;
};

// Runs a kernel on the current stream, with so many bytes of shared memory for each block beside
// what it declares; a grid of no blocks is no launch.
template <typename... Parameters, typename... Arguments>
void launch_with_memory(const char* name, void (*kernel)(Parameters...), int64_t blocks,
                        int threads, int shared_bytes, Arguments... arguments) {
  if (blocks == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = current_stream();
  if (shared_bytes > 0) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          name);
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads,
            Arguments... arguments) {
  launch_with_memory(name, kernel, blocks, threads, 0, arguments...);
}

}  // namespace rapkernels::cuda
