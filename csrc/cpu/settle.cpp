// How the samples of a state are scaled and shifted: a few numbers per sample, nothing to share
// out.
#include "../settle.h"

namespace rapkernels::cpu {

void settle_factor(const Statistics* statistics, const double* total, double* factor,
                   int64_t samples, Storage storage, bool narrow) {
  for (int64_t n = 0; n < samples; ++n) {
    factor[n] =
        storage_factor(statistics[n], total == nullptr ? nullptr : total + n, storage, narrow);
  }
}

void settle_shift(const Statistics* statistics, const double* total, const double* factor,
                  const double* scale, double* psi, double* out_scale, double* absorbed,
                  int64_t samples) {
  for (int64_t n = 0; n < samples; ++n) {
    const Settled state = settled(statistics[n], total == nullptr ? nullptr : total + n, factor[n],
                                  scale == nullptr ? 1.0 : scale[n]);
    psi[n] = state.psi;
    out_scale[n] = state.scale;
    absorbed[n] = state.absorbed;
  }
}

}  // namespace rapkernels::cpu
