// The fused linear step: W is split in registers, never stored, and for few samples read once per
// direction; for many, tiles of W stay in the cache while the samples pass.
#include "../rules.h"
#include "simd.h"

namespace rapkernels::cpu {
namespace {

// Samples that share one read of W, and rows of W that share one pass over the accumulators.
constexpr int64_t kSamples = 4;
constexpr int64_t kRows = 4;
// Rows of W that stay in the cache while all samples pass: forward, and backward over kInputs.
constexpr int64_t kSplitTile = 8;
constexpr int64_t kContributionTile = 32;
// Inputs of one task of the backward: the accumulators of kSamples samples stay in L1.
constexpr int64_t kInputs = 1024;
// Rows of one task of the backward: so many that W is not read often.
constexpr int64_t kGroup = 64;
// Weights asked for ahead of their use, since what a processor fetches by itself ends with a page.
constexpr int64_t kAhead = 1024;
// Float sums are handed to the outer accumulator after this many inputs.
constexpr int64_t kSegment = 4096;

// positive[s] = sum of max(w x, 0), negative[s] = sum of max(-w x, 0), for one row of W.
template <typename T, int64_t samples>
RAPKERNELS_INLINE void split_row(const T* weight, const T* x, int64_t inputs, T* positive,
                                 T* negative, int64_t stride) {
  using V = Vector<T>;
  using Lanes = typename V::type;
  T plus[samples] = {};
  T minus[samples] = {};
  for (int64_t begin = 0; begin < inputs; begin += kSegment) {
    const int64_t end = std::min(inputs, begin + kSegment);
    Lanes up[samples] = {};
    Lanes down[samples] = {};
    int64_t i = begin;
    for (; i + V::lanes <= end; i += V::lanes) {
      prefetch(weight + i, kAhead);
      Lanes w;
      std::memcpy(&w, weight + i, sizeof(w));
      for (int64_t s = 0; s < samples; ++s) {
        Lanes v;
        std::memcpy(&v, x + s * inputs + i, sizeof(v));
        const Lanes message = w * v;
        const Lanes supporting = message > 0 ? message : Lanes{};
        up[s] += supporting;
        down[s] += supporting - message;
      }
    }
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t l = 0; l < V::lanes; ++l) {
        plus[s] += up[s][l];
        minus[s] += down[s][l];
      }
      for (int64_t k = i; k < end; ++k) {
        const T message = weight[k] * x[s * inputs + k];
        plus[s] += message > 0 ? message : T(0);
        minus[s] += message > 0 ? T(0) : -message;
      }
    }
  }
  for (int64_t s = 0; s < samples; ++s) {
    positive[s * stride] = plus[s];
    negative[s * stride] = minus[s];
  }
}

template <typename T>
RAPKERNELS_CLONES void split_rows(const T* x, const T* weight, T* positive, T* negative,
                                  int64_t rows, int64_t inputs, int64_t outputs, int64_t first,
                                  int64_t last) {
  for (int64_t tile = first; tile < last; tile += kSplitTile) {
    const int64_t end = std::min(last, tile + kSplitTile);
    int64_t n = 0;
    for (; n + kSamples <= rows; n += kSamples) {
      for (int64_t j = tile; j < end; ++j) {
        split_row<T, kSamples>(weight + j * inputs, x + n * inputs, inputs,
                               positive + n * outputs + j, negative + n * outputs + j, outputs);
      }
    }
    for (; n < rows; ++n) {
      for (int64_t j = tile; j < end; ++j) {
        split_row<T, 1>(weight + j * inputs, x + n * inputs, inputs, positive + n * outputs + j,
                        negative + n * outputs + j, outputs);
      }
    }
  }
}

// gradient[s][i] += sum over `count` rows of |w| * (w x > 0 ? S+ : S-).
template <typename T, int64_t samples, int64_t count>
RAPKERNELS_INLINE void accumulate_rows(const T* weight, int64_t inputs, const T* const* x,
                                       const T* positive, const T* negative, int64_t outputs,
                                       int64_t size, T* gradient) {
  using V = Vector<T>;
  using Lanes = typename V::type;
  int64_t i = 0;
  for (; i + V::lanes <= size; i += V::lanes) {
    Lanes w[count];
    Lanes absolute[count];
    for (int64_t r = 0; r < count; ++r) {
      prefetch(weight + r * inputs + i, count * inputs);
      std::memcpy(&w[r], weight + r * inputs + i, sizeof(Lanes));
      absolute[r] = w[r] > 0 ? w[r] : -w[r];
    }
    for (int64_t s = 0; s < samples; ++s) {
      Lanes v, sum;
      std::memcpy(&v, x[s] + i, sizeof(v));
      std::memcpy(&sum, gradient + s * inputs + i, sizeof(sum));
      for (int64_t r = 0; r < count; ++r) {
        const Lanes up = Lanes{} + positive[s * outputs + r];
        const Lanes down = Lanes{} + negative[s * outputs + r];
        sum += absolute[r] * (w[r] * v > 0 ? up : down);
      }
      std::memcpy(gradient + s * inputs + i, &sum, sizeof(sum));
    }
  }
  for (; i < size; ++i) {
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t r = 0; r < count; ++r) {
        const T w = weight[r * inputs + i];
        const T part = w * x[s][i] > 0 ? positive[s * outputs + r] : negative[s * outputs + r];
        gradient[s * inputs + i] += magnitude(w) * part;
      }
    }
  }
}

// All rows [first, last) of W onto `samples` samples.
template <typename T, int64_t samples>
RAPKERNELS_INLINE void accumulate_tile(const T* weight, int64_t inputs, const T* const* x,
                                       const T* positive, const T* negative, int64_t outputs,
                                       int64_t first, int64_t last, int64_t size, T* gradient) {
  int64_t j = first;
  for (; j + kRows <= last; j += kRows) {
    accumulate_rows<T, samples, kRows>(weight + j * inputs, inputs, x, positive + j, negative + j,
                                       outputs, size, gradient);
  }
  for (; j < last; ++j) {
    accumulate_rows<T, samples, 1>(weight + j * inputs, inputs, x, positive + j, negative + j,
                                   outputs, size, gradient);
  }
}

// Columns [begin, begin + size) of rows [first, last) of the contributions, which serve as the
// accumulators until the end. Row n goes with row n % period of x.
template <typename T>
RAPKERNELS_CLONES void contribute_columns(const T* x, const T* weight, const T* positive,
                                          const T* negative, T* contribution, int64_t first,
                                          int64_t last, int64_t period, int64_t inputs,
                                          int64_t outputs, int64_t begin, int64_t size) {
  for (int64_t n = first; n < last; ++n) {
    for (int64_t i = 0; i < size; ++i) contribution[n * inputs + begin + i] = T(0);
  }
  for (int64_t tile = 0; tile < outputs; tile += kContributionTile) {
    const int64_t end = std::min(outputs, tile + kContributionTile);
    int64_t n = first;
    for (; n + kSamples <= last; n += kSamples) {
      const T* of[kSamples];
      for (int64_t s = 0; s < kSamples; ++s) of[s] = x + (n + s) % period * inputs + begin;
      accumulate_tile<T, kSamples>(weight + begin, inputs, of, positive + n * outputs,
                                   negative + n * outputs, outputs, tile, end, size,
                                   contribution + n * inputs + begin);
    }
    for (; n < last; ++n) {
      const T* of = x + n % period * inputs + begin;
      accumulate_tile<T, 1>(weight + begin, inputs, &of, positive + n * outputs,
                            negative + n * outputs, outputs, tile, end, size,
                            contribution + n * inputs + begin);
    }
  }
  for (int64_t n = first; n < last; ++n) {
    const T* from = x + n % period * inputs + begin;
    T* to = contribution + n * inputs + begin;
    for (int64_t i = 0; i < size; ++i) to[i] = finite_or_zero(magnitude(from[i]) * to[i]);
  }
}

}  // namespace

template <typename T>
void linear_split(const T* x, const void* weight, Storage, T* positive, T* negative, int64_t rows,
                  int64_t inputs, int64_t outputs, bool) {
  const T* w = static_cast<const T*>(weight);
  const int64_t grain = std::max<int64_t>(1, kTask / std::max<int64_t>(1, inputs * rows));
  at::parallel_for(0, outputs, grain, [&](int64_t first, int64_t last) {
    split_rows(x, w, positive, negative, rows, inputs, outputs, first, last);
  });
}

template <typename T>
void linear_contribution(const T* x, const void* weight, Storage, const T* positive,
                         const T* negative, T* contribution, int64_t rows, int64_t period,
                         int64_t inputs, int64_t outputs, bool) {
  const T* w = static_cast<const T*>(weight);
  const int64_t blocks = (inputs + kInputs - 1) / kInputs;
  const int64_t groups = (rows + kGroup - 1) / kGroup;
  at::parallel_for(0, blocks * groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i / groups * kInputs;
      const int64_t row = i % groups * kGroup;
      contribute_columns(x, w, positive, negative, contribution, row, std::min(row + kGroup, rows),
                         period, inputs, outputs, begin, std::min(kInputs, inputs - begin));
    }
  });
}

#define RAPKERNELS_INSTANTIATE(T)                                                               \
  template void linear_split(const T*, const void*, Storage, T*, T*, int64_t, int64_t, int64_t, \
                             bool);                                                             \
  template void linear_contribution(const T*, const void*, Storage, const T*, const T*, T*,     \
                                    int64_t, int64_t, int64_t, int64_t, bool);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
