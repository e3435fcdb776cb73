// The windows of one spatial dimension of a pool: which inputs an output reads, and which outputs
// read an input. For the host and for nvcc; a few integers, so that they travel by value. A GPU
// divides 32-bit numbers several times faster, so the index type is a parameter.
#pragma once

#include <cstdint>

#include "numerics.h"

namespace rapkernels {

template <typename Index>
struct BasicWindows {
  Index inputs;
  Index outputs;
  // Of fixed windows; an adaptive pool has kernel 0, and its windows share the inputs out.
  Index kernel;
  Index stride;
  Index padding;
  Index step;

  RAPKERNELS_HD bool is_adaptive() const { return kernel == 0; }

  // Output o reads begin(o), begin(o) + step, ... and stops before end(o). A dilated window that
  // starts in the padding goes on on its own grid.
  RAPKERNELS_HD Index begin(Index o) const {
    if (is_adaptive()) return o * inputs / outputs;
    const Index from = o * stride - padding;
    return from < 0 ? from + (step - 1 - from) / step * step : from;
  }
  RAPKERNELS_HD Index end(Index o) const {
    if (is_adaptive()) return ((o + 1) * inputs + outputs - 1) / outputs;
    const Index to = o * stride - padding + step * (kernel - 1) + 1;
    return to < inputs ? to : inputs;
  }

  // What an average over the window of output o divides by.
  RAPKERNELS_HD Index divisor(Index o) const { return is_adaptive() ? end(o) - begin(o) : kernel; }

  // Outputs first(i) to last(i), those where reads(o, i), have input i in their windows.
  RAPKERNELS_HD Index first(Index i) const {
    if (is_adaptive()) return i * outputs / inputs;
    const Index from = i + padding - step * (kernel - 1);
    return from <= 0 ? 0 : (from + stride - 1) / stride;
  }
  RAPKERNELS_HD Index last(Index i) const {
    if (is_adaptive()) return ((i + 1) * outputs + inputs - 1) / inputs - 1;
    const Index to = (i + padding) / stride;
    return to < outputs ? to : outputs - 1;
  }
  RAPKERNELS_HD bool reads(Index o, Index i) const {
    return is_adaptive() || (i + padding - o * stride) % step == 0;
  }
};

using Windows = BasicWindows<int64_t>;

}  // namespace rapkernels
