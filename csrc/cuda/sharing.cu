// Sharing ratio: what the vector over the channels of each position makes of its relevance. A warp
// takes a position where its channels are contiguous; else a block takes 32 positions, and each of
// its warps every eighth channel. Every target forms the norms anew: the vector is read for the
// result in any case.
#include <cmath>

#include "../rules.h"
#include "elementwise.cuh"
#include "targets.cuh"

namespace rapkernels::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;

// What a position is reduced to: ||v||^2, <v, b> and R.
struct Totals {
  double square;
  double along;
  double relevance;

  template <typename A>
  __device__ void add(A v, A bias, A r) {
    square += static_cast<double>(v) * static_cast<double>(v);
    along += static_cast<double>(v) * static_cast<double>(bias);
    relevance += static_cast<double>(r);
  }
  __device__ void operator+=(const Totals& other) {
    square += other.square;
    along += other.along;
    relevance += other.relevance;
  }
};

// The sum over a warp, the same in every lane.
__device__ __forceinline__ Totals warp_total(Totals t) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    t += Totals{__shfl_xor_sync(0xffffffffu, t.square, offset),
                __shfl_xor_sync(0xffffffffu, t.along, offset),
                __shfl_xor_sync(0xffffffffu, t.relevance, offset)};
  }
  return t;
}

template <typename T, typename Form, bool biased>
struct Sharing {
  const T* values;  // v without its bias
  const T* bias;
  const double* taps;
  const T* relevance;
  const double* psi;
  T* out;
  double* share;
  int64_t samples;
  int64_t channels;
  int64_t positions;

  using A = Acc<T>;

  // What one position hands on, and how.
  struct Amount {
    A inverse;
    A amount;
  };

  __device__ A offset(int64_t c) const { return biased ? accumulated(bias[c]) : A(0); }
  __device__ A shift(int64_t m) const { return static_cast<A>(shift_of(psi, m)); }

  __device__ void add(Totals& totals, int64_t c, int64_t from, int64_t at, A psi_of_sample) const {
    const A b = offset(c);
    totals.add(accumulated(values[from]) + b, b,
               shifted(accumulated(relevance[at]), psi_of_sample));
  }

  // `first`: this thread is the one that speaks for position p of sample m of the relevance.
  __device__ Amount amount(const Totals& t, int64_t m, int64_t p, bool first, Sum& lost) const {
    const double each = taps == nullptr ? 1.0 : taps[p];
    const bool reached = carries_vector<A>(t.square) && each > 0;
    const double norm = sqrt(t.square);
    if (first) {
      if (!reached) lost.add(t.relevance);
      if (biased) {
        share[m * positions + p] =
            reached ? finite_or_zero(t.relevance / t.square * t.along / each) : 0.0;
      }
    }
    return {reached ? static_cast<A>(1 / norm) : A(0),
            reached ? static_cast<A>(Form::amount(t.relevance, norm)) : A(0)};
  }

  __device__ void hand(const Amount& to, int64_t c, int64_t from, int64_t at) const {
    const A v = accumulated(values[from]) + offset(c);
    out[at] = rounded<T>(Form::entry(v * to.inverse, to.amount));
  }
};

template <typename Body>
__global__ void __launch_bounds__(kThreads)
    share_rows(const Body body, Sum* partial, int64_t blocks) {
  const int64_t m = blockIdx.x / blocks;
  const int64_t p = (blockIdx.x - m * blocks) * kWarps + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Sum lost{};
  if (p < body.positions) {
    const auto shift = body.shift(m);
    const int64_t from = (m % body.samples * body.positions + p) * body.channels;
    const int64_t at = (m * body.positions + p) * body.channels;
    Totals totals{};
    for (int64_t c = lane; c < body.channels; c += kWarp) {
      body.add(totals, c, from + c, at + c, shift);
    }
    const auto amount = body.amount(warp_total(totals), m, p, lane == 0, lost);
    for (int64_t c = lane; c < body.channels; c += kWarp) body.hand(amount, c, from + c, at + c);
  }
  lost = block_sum(lost);
  if (threadIdx.x == 0) partial[blockIdx.x] = lost;
}

template <typename Body>
__global__ void __launch_bounds__(kThreads)
    share_planes(const Body body, Sum* partial, int64_t blocks) {
  __shared__ Totals of_warp[kWarps][kWarp];
  const int64_t m = blockIdx.x / blocks;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t p = (blockIdx.x - m * blocks) * kWarp + lane;
  const bool inside = p < body.positions;
  const auto shift = body.shift(m);
  const int64_t from = m % body.samples * body.channels * body.positions + p;
  const int64_t at = m * body.channels * body.positions + p;
  Totals totals{};
  if (inside) {
    for (int64_t c = warp; c < body.channels; c += kWarps) {
      body.add(totals, c, from + c * body.positions, at + c * body.positions, shift);
    }
  }
  of_warp[warp][lane] = totals;
  __syncthreads();
  Sum lost{};
  if (inside) {
    totals = of_warp[0][lane];
    for (int w = 1; w < kWarps; ++w) totals += of_warp[w][lane];
    const auto amount = body.amount(totals, m, p, warp == 0, lost);
    for (int64_t c = warp; c < body.channels; c += kWarps) {
      body.hand(amount, c, from + c * body.positions, at + c * body.positions);
    }
  }
  lost = block_sum(lost);
  if (threadIdx.x == 0) partial[blockIdx.x] = lost;
}

template <typename T, typename Form, bool biased>
void run(const char* name, const T* values, const T* bias, const double* taps, const T* relevance,
         const double* psi, T* out, double* share, double* absorbed, const VectorShape& shape) {
  using Body = Sharing<T, Form, biased>;
  const Body body{values, bias,  taps,          relevance,      psi,
                  out,    share, shape.samples, shape.channels, shape.positions};
  const bool rows = shape.channels_last || shape.positions == 1;
  const int64_t together = rows ? kWarps : kWarp;
  const int64_t blocks = (shape.positions + together - 1) / together;
  const int64_t samples = shape.targets * shape.samples;
  const Workspace partial(samples * blocks * static_cast<int64_t>(sizeof(Sum)));
  launch(name, rows ? share_rows<Body> : share_planes<Body>, samples * blocks, kThreads, body,
         partial.as<Sum>(), blocks);
  launch(name, add_chunks<Sum, double, KeepNone>, samples, kThreads, partial.as<const Sum>(),
         absorbed, blocks, KeepNone{});
}

// x * gradient + share of the position.
template <typename T, typename Index, bool shared>
struct Contribution {
  using Reduced = Measure;
  const T* x;
  const double* share;
  T* gradient;
  int64_t samples;
  Index channels;
  Index positions;
  bool channels_last;

  template <int width>
  __device__ void run(int64_t m, int64_t i, Measure& measure) const {
    using A = Acc<T>;
    const int64_t size = static_cast<int64_t>(channels) * positions;
    const auto inputs = load<width>(x + operand_sample(m, samples) * size + i);
    auto g = load<width>(gradient + m * size + i);
    const Index inner = channels_last ? channels : positions;
    Index outer = 0;
    Index rest = 0;
    if (shared) {
      outer = static_cast<Index>(i) / inner;
      rest = static_cast<Index>(i) - outer * inner;
    }
    for (int k = 0; k < width; ++k) {
      A c = accumulated(inputs.at[k]) * accumulated(g.at[k]);
      if (shared) {
        const int64_t p = channels_last ? outer : rest;
        c += static_cast<A>(share[m * positions + p]);
        if (++rest == inner) {
          rest = 0;
          ++outer;
        }
      }
      g.at[k] = rounded<T>(finite_or_zero(c));
      measure.add(accumulated(g.at[k]));
    }
    store_pack(gradient + m * size + i, g);
  }
};

template <typename T, typename Index, bool shared>
void run_contribution(const T* x, const double* share, T* gradient, Statistics* statistics,
                      const VectorShape& shape) {
  constexpr int wide = kAccess / sizeof(T);
  const int64_t size = shape.channels * shape.positions;
  const Contribution<T, Index, shared> body{x,
                                            share,
                                            gradient,
                                            shape.samples,
                                            static_cast<Index>(shape.channels),
                                            static_cast<Index>(shape.positions),
                                            shape.channels_last};
  reduce_elementwise<wide>("sharing_contribution", body, statistics, shape.targets * shape.samples,
                           size, fits(wide, sizeof(T), {size}, {x, gradient}));
}

template <typename T, typename Index>
auto pick_contribution(bool shared) {
  return shared ? run_contribution<T, Index, true> : run_contribution<T, Index, false>;
}

}  // namespace

template <typename T>
void share_squares(const T* vector, const T* relevance, const double* psi, T* out, double* absorbed,
                   const VectorShape& shape) {
  run<T, Squares, false>("share_squares", vector, nullptr, nullptr, relevance, psi, out, nullptr,
                         absorbed, shape);
}

template <typename T>
void sharing_quotient(const T* z, const T* bias, const double* taps, const T* relevance,
                      const double* psi, T* quotient, double* share, double* absorbed,
                      const VectorShape& shape) {
  const auto kernel = bias == nullptr ? run<T, Gradient, false> : run<T, Gradient, true>;
  kernel("sharing_quotient", z, bias, taps, relevance, psi, quotient, share, absorbed, shape);
}

template <typename T>
void sharing_contribution(const T* x, const double* share, T* gradient, Statistics* statistics,
                          const VectorShape& shape) {
  const bool small = shape.channels * shape.positions < INT32_MAX;
  const auto kernel = small ? pick_contribution<T, int32_t>(share != nullptr)
                            : pick_contribution<T, int64_t>(share != nullptr);
  kernel(x, share, gradient, statistics, shape);
}

#define RAPKERNELS_INSTANTIATE(T)                                                                  \
  template void share_squares(const T*, const T*, const double*, T*, double*, const VectorShape&); \
  template void sharing_quotient(const T*, const T*, const double*, const T*, const double*, T*,   \
                                 double*, double*, const VectorShape&);                            \
  template void sharing_contribution(const T*, const double*, T*, Statistics*, const VectorShape&);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
