// How the samples of a state are scaled and shifted: a thread for each sample.
#include "../settle.h"

#include "reduce.cuh"

namespace rapkernels::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    factor_kernel(const Statistics* statistics, const double* total, double* factor,
                  int64_t samples, Storage storage, bool narrow) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= samples) return;
  factor[n] =
      storage_factor(statistics[n], total == nullptr ? nullptr : total + n, storage, narrow);
}

__global__ void __launch_bounds__(kThreads)
    shift_kernel(const Statistics* statistics, const double* total, const double* factor,
                 const double* scale, double* psi, double* out_scale, double* absorbed,
                 int64_t samples) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= samples) return;
  const Settled state = settled(statistics[n], total == nullptr ? nullptr : total + n, factor[n],
                                scale == nullptr ? 1.0 : scale[n]);
  psi[n] = state.psi;
  out_scale[n] = state.scale;
  absorbed[n] = state.absorbed;
}

int64_t blocks_of(int64_t samples) { return (samples + kThreads - 1) / kThreads; }

}  // namespace

void settle_factor(const Statistics* statistics, const double* total, double* factor,
                   int64_t samples, Storage storage, bool narrow) {
  launch("settle_factor", factor_kernel, blocks_of(samples), kThreads, statistics, total, factor,
         samples, storage, narrow);
}

void settle_shift(const Statistics* statistics, const double* total, const double* factor,
                  const double* scale, double* psi, double* out_scale, double* absorbed,
                  int64_t samples) {
  launch("settle_shift", shift_kernel, blocks_of(samples), kThreads, statistics, total, factor,
         scale, psi, out_scale, absorbed, samples);
}

}  // namespace rapkernels::cuda
