// Two known mistakes, to learn whether compute-sanitizer works on this machine.
#include <cstdlib>

namespace rapkernels {

__global__ void writes_outside(int* memory) { memory[4096 + threadIdx.x] = 1; }

__global__ void races(int* memory) {
  __shared__ int shared[256];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  memory[threadIdx.x] = shared[255 - threadIdx.x];
}

}  // namespace rapkernels

int main(int, char** arguments) {
  int* memory = nullptr;
  if (cudaMalloc(&memory, 256 * sizeof(int)) != cudaSuccess) return 3;
  if (std::atoi(arguments[1]) == 0) {
    rapkernels::writes_outside<<<1, 1>>>(memory);
  } else {
    rapkernels::races<<<1, 256>>>(memory);
  }
  cudaDeviceSynchronize();
  return 0;
}
