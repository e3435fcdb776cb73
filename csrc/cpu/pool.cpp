// Max and average pooling in one to three dimensions, fixed or adaptive windows, both layouts.
// A task owns its inputs, so overlapping windows add up in a fixed order without atomics.
#include <array>

#include "../rules.h"
#include "simd.h"

namespace rapkernels::cpu {
namespace {

// The windows of one dimension, worked out once per call.
struct Table {
  std::vector<int64_t> begin;
  std::vector<int64_t> end;
  std::vector<int64_t> divisor;
  int64_t step;
  int64_t inputs;
  int64_t outputs;

  explicit Table(const Windows& windows)
      : step(windows.is_adaptive() ? 1 : windows.step),
        inputs(windows.inputs),
        outputs(windows.outputs) {
    for (int64_t o = 0; o < outputs; ++o) {
      begin.push_back(windows.begin(o));
      end.push_back(windows.end(o));
      divisor.push_back(windows.divisor(o));
    }
  }
};

using Tables = std::array<Table, 3>;

// Channels of a channels-last task: contiguous, so that the loops over them vectorise.
constexpr int64_t kChannels = 64;

// One task: `channels` contiguous channels of one sample, or one plane of a contiguous tensor, with
// the relevance of every target.
template <typename T>
struct Plane {
  const T* x;
  const T* relevance;
  T* out;
  const T* psi;  // one for each target
  int64_t channels;
  int64_t stride;  // between two positions
  int64_t targets;
  int64_t relevance_stride;  // between two targets
  int64_t out_stride;
};

// Calls body(position) for every input position of the window of output (o0, o1, o2), row-major.
template <typename Body>
RAPKERNELS_INLINE void visit(const Tables& w, int64_t o0, int64_t o1, int64_t o2,
                             const Body& body) {
  for (int64_t i = w[0].begin[o0]; i < w[0].end[o0]; i += w[0].step) {
    for (int64_t j = w[1].begin[o1]; j < w[1].end[o1]; j += w[1].step) {
      for (int64_t k = w[2].begin[o2]; k < w[2].end[o2]; k += w[2].step) {
        body((i * w[1].inputs + j) * w[2].inputs + k);
      }
    }
  }
}

struct Max {
  bool absorb_zeros;

  template <typename T>
  RAPKERNELS_INLINE void window(const Plane<T>& plane, const Tables& w, int64_t o0, int64_t o1,
                                int64_t o2, const T* relevance, double* lost) const {
    T best[kChannels];
    int64_t winner[kChannels];
    bool first = true;
    visit(w, o0, o1, o2, [&](int64_t position) {
      const T* x = plane.x + position * plane.stride;
      if (first) {
        for (int64_t c = 0; c < plane.channels; ++c) {
          best[c] = x[c];
          winner[c] = position;
        }
        first = false;
        return;
      }
      for (int64_t c = 0; c < plane.channels; ++c) {
        const bool better = x[c] > best[c];
        best[c] = better ? x[c] : best[c];
        winner[c] = better ? position : winner[c];
      }
    });
    for (int64_t t = 0; t < plane.targets; ++t) {
      const T* incoming = relevance + t * plane.relevance_stride;
      T* to = plane.out + t * plane.out_stride;
      for (int64_t c = 0; c < plane.channels; ++c) {
        const T r = shifted(incoming[c], plane.psi[t]);
        if (first || (absorb_zeros && best[c] == T(0))) {
          lost[t] += static_cast<double>(r);
        } else {
          T& out = to[winner[c] * plane.stride + c];
          out = finite_or_zero(out + r);
        }
      }
    }
  }
};

template <typename S>
struct Average {
  double stabilizer;

  template <typename T>
  RAPKERNELS_INLINE void window(const Plane<T>& plane, const Tables& w, int64_t o0, int64_t o1,
                                int64_t o2, const T* relevance, double* lost) const {
    T whole[kChannels] = {};
    T added[kChannels];
    T factor[kChannels];
    // Of the average, and the sum is kept from 0.
    const auto divisor =
        static_cast<double>(w[0].divisor[o0] * w[1].divisor[o1] * w[2].divisor[o2]);
    const T of_sum = static_cast<T>(stabilizer * divisor);
    visit(w, o0, o1, o2, [&](int64_t position) {
      const T* x = plane.x + position * plane.stride;
      for (int64_t c = 0; c < plane.channels; ++c) whole[c] += S::weight(x[c]);
    });
    for (int64_t c = 0; c < plane.channels; ++c) {
      added[c] = stabilizing(whole[c], of_sum);
      whole[c] += added[c];
    }
    for (int64_t t = 0; t < plane.targets; ++t) {
      const T* incoming = relevance + t * plane.relevance_stride;
      for (int64_t c = 0; c < plane.channels; ++c) {
        const T r = shifted(incoming[c], plane.psi[t]);
        const bool reached = carries_message(whole[c]);
        factor[c] = reached ? finite_or_zero(r / whole[c]) : T(0);
        lost[t] += static_cast<double>(reached ? finite_or_zero(added[c] * factor[c]) : r);
      }
      visit(w, o0, o1, o2, [&](int64_t position) {
        const T* x = plane.x + position * plane.stride;
        T* out = plane.out + t * plane.out_stride + position * plane.stride;
        for (int64_t c = 0; c < plane.channels; ++c) {
          out[c] = finite_or_zero(out[c] + S::weight(x[c]) * factor[c]);
        }
      });
    }
  }
};

template <typename T, typename Kind>
RAPKERNELS_CLONES void plane_run(const Plane<T>& plane, const Tables& w, const Kind& kind,
                                 double* lost) {
  const int64_t inputs = w[0].inputs * w[1].inputs * w[2].inputs;
  for (int64_t t = 0; t < plane.targets; ++t) {
    T* out = plane.out + t * plane.out_stride;
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t c = 0; c < plane.channels; ++c) out[i * plane.stride + c] = T(0);
    }
    lost[t] = 0;
  }
  const T* relevance = plane.relevance;
  for (int64_t o0 = 0; o0 < w[0].outputs; ++o0) {
    for (int64_t o1 = 0; o1 < w[1].outputs; ++o1) {
      for (int64_t o2 = 0; o2 < w[2].outputs; ++o2, relevance += plane.stride) {
        kind.window(plane, w, o0, o1, o2, relevance, lost);
      }
    }
  }
}

template <typename T, typename Kind>
void pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,
          const PoolShape& shape, const Kind& kind) {
  const Tables w{Table(shape.windows[0]), Table(shape.windows[1]), Table(shape.windows[2])};
  const int64_t inputs = w[0].inputs * w[1].inputs * w[2].inputs;
  const int64_t outputs = w[0].outputs * w[1].outputs * w[2].outputs;
  const int64_t width = shape.channels_last ? kChannels : 1;
  const int64_t tasks = (shape.channels + width - 1) / width;
  const int64_t stride = shape.channels_last ? shape.channels : 1;
  std::vector<double> partial(shape.targets * shape.samples * tasks);
  at::parallel_for(0, shape.samples * tasks, 1, [&](int64_t first, int64_t last) {
    std::vector<T> shifts(shape.targets);
    std::vector<double> lost(shape.targets);
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / tasks;
      const int64_t channel = (i % tasks) * width;
      const int64_t in = n * shape.channels * inputs + channel * (shape.channels_last ? 1 : inputs);
      const int64_t to =
          n * shape.channels * outputs + channel * (shape.channels_last ? 1 : outputs);
      for (int64_t t = 0; t < shape.targets; ++t) {
        shifts[t] = static_cast<T>(psi_of(psi, t * shape.samples + n));
      }
      const Plane<T> plane{x + in,
                           relevance + to,
                           out + in,
                           shifts.data(),
                           std::min(width, shape.channels - channel),
                           stride,
                           shape.targets,
                           shape.samples * shape.channels * outputs,
                           shape.samples * shape.channels * inputs};
      plane_run(plane, w, kind, lost.data());
      for (int64_t t = 0; t < shape.targets; ++t) {
        partial[(t * shape.samples + n) * tasks + i % tasks] = lost[t];
      }
    }
  });
  reduce(partial, absorbed, shape.targets * shape.samples);
}

}  // namespace

template <typename T>
void max_pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,
              const PoolShape& shape, bool absorb_zeros) {
  pool(x, relevance, psi, out, absorbed, shape, Max{absorb_zeros});
}

template <typename T>
void avg_pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,
              const PoolShape& shape, Share share, double stabilizer) {
  switch (share) {
    case Share::kAbsolute:
      return pool(x, relevance, psi, out, absorbed, shape, Average<AbsoluteShare>{stabilizer});
    case Share::kRatio:
      return pool(x, relevance, psi, out, absorbed, shape, Average<RatioShare>{stabilizer});
    default:
      return pool(x, relevance, psi, out, absorbed, shape, Average<PositiveShare>{stabilizer});
  }
}

#define RAPKERNELS_INSTANTIATE(T)                                                                 \
  template void max_pool(const T*, const T*, const double*, T*, double*, const PoolShape&, bool); \
  template void avg_pool(const T*, const T*, const double*, T*, double*, const PoolShape&, Share, \
                         double);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
