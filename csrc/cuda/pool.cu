// Max and average pooling in one to three dimensions, fixed or adaptive windows, both layouts.
// First every output finds its winner or its factor, then every input gathers what the outputs that
// read it send: overlapping windows add up in a fixed order without atomics. What the windows hold
// is looked at with the relevance of the first target; the other targets use what that found.
#include "../rules.h"
#include "elementwise.cuh"
#include "targets.cuh"

namespace rapkernels::cuda {
namespace {

// The elements of one sample: channel and position in space, in either memory order.
template <typename Index>
struct Grid {
  Index channels;
  Index size[3];
  Index positions;
  bool channels_last;

  Grid(int64_t channels, int64_t i, int64_t j, int64_t k, bool channels_last)
      : channels(static_cast<Index>(channels)),
        size{static_cast<Index>(i), static_cast<Index>(j), static_cast<Index>(k)},
        positions(static_cast<Index>(i * j * k)),
        channels_last(channels_last) {}

  __device__ void find(Index i, Index& channel, Index& position) const {
    const Index inner = channels_last ? channels : positions;
    const Index outer = i / inner;
    channel = channels_last ? i - outer * inner : outer;
    position = channels_last ? outer : i - outer * inner;
  }
  __device__ Index at(Index channel, Index position) const {
    return channels_last ? position * channels + channel : channel * positions + position;
  }
  __device__ Index position(Index i, Index j, Index k) const {
    return (i * size[1] + j) * size[2] + k;
  }
  __device__ int64_t sample(int64_t n) const {
    return n * static_cast<int64_t>(channels) * positions;
  }
};

template <typename I>
struct Geometry {
  using Index = I;
  BasicWindows<Index> w0, w1, w2;
  Grid<Index> in;
  Grid<Index> out;

  explicit Geometry(const PoolShape& shape)
      : w0(narrowed(shape.windows[0])),
        w1(narrowed(shape.windows[1])),
        w2(narrowed(shape.windows[2])),
        in(shape.channels, w0.inputs, w1.inputs, w2.inputs, shape.channels_last),
        out(shape.channels, w0.outputs, w1.outputs, w2.outputs, shape.channels_last) {}

  // Calls body(position) for every input position of an output's window, row-major.
  template <typename Body>
  __device__ void visit(Index output, const Body& body) const {
    const Index row = output / out.size[2];
    const Index o0 = row / out.size[1];
    const Index o1 = row - o0 * out.size[1];
    const Index o2 = output - row * out.size[2];
    for (Index i = w0.begin(o0); i < w0.end(o0); i += w0.step) {
      for (Index j = w1.begin(o1); j < w1.end(o1); j += w1.step) {
        for (Index k = w2.begin(o2); k < w2.end(o2); k += w2.step) body(in.position(i, j, k));
      }
    }
  }

  // What an average over an output's window divides by.
  __device__ Index divisor(Index output) const {
    const Index row = output / out.size[2];
    const Index o0 = row / out.size[1];
    return w0.divisor(o0) * w1.divisor(row - o0 * out.size[1]) *
           w2.divisor(output - row * out.size[2]);
  }

  // Calls body(position) for every output position that reads an input, row-major.
  template <typename Body>
  __device__ void visit_readers(Index input, const Body& body) const {
    const Index row = input / in.size[2];
    const Index i0 = row / in.size[1];
    const Index i1 = row - i0 * in.size[1];
    const Index i2 = input - row * in.size[2];
    for (Index a = w0.first(i0); a <= w0.last(i0); ++a) {
      if (!w0.reads(a, i0)) continue;
      for (Index b = w1.first(i1); b <= w1.last(i1); ++b) {
        if (!w1.reads(b, i1)) continue;
        for (Index c = w2.first(i2); c <= w2.last(i2); ++c) {
          if (w2.reads(c, i2)) body(out.position(a, b, c));
        }
      }
    }
  }

 private:
  static BasicWindows<Index> narrowed(const Windows& w) {
    return {static_cast<Index>(w.inputs),  static_cast<Index>(w.outputs),
            static_cast<Index>(w.kernel),  static_cast<Index>(w.stride),
            static_cast<Index>(w.padding), static_cast<Index>(w.step)};
  }
};

int64_t inputs_of(const PoolShape& shape) {
  const Windows* w = shape.windows;
  return shape.channels * w[0].inputs * w[1].inputs * w[2].inputs;
}

int64_t outputs_of(const PoolShape& shape) {
  const Windows* w = shape.windows;
  return shape.channels * w[0].outputs * w[1].outputs * w[2].outputs;
}

// Whether every index of a sample, and what it is computed from, has 31 bits.
bool is_small(const PoolShape& shape) {
  constexpr int64_t bound = INT32_MAX;
  bool small = inputs_of(shape) < bound && outputs_of(shape) < bound;
  for (const Windows& w : shape.windows) {
    small = small && (w.inputs + 1) * (w.outputs + 1) < bound &&
            w.inputs + w.outputs * w.stride + 2 * w.padding + w.step * (w.kernel + 1) < bound;
  }
  return small;
}

// The samples of the targets after the first.
template <typename T>
struct Further {
  const T* relevance;
  const double* psi;
  double* absorbed;
  int64_t samples;

  Further(const T* of_all, const double* psi_of_all, double* absorbed_of_all,
          const PoolShape& shape)
      : relevance(of_all + shape.samples * outputs_of(shape)),
        psi(psi_of_all == nullptr ? nullptr : psi_of_all + shape.samples),
        absorbed(absorbed_of_all + shape.samples),
        samples((shape.targets - 1) * shape.samples) {}
};

// The position that wins each output, -1 where none does.
template <typename T, typename G>
struct Winners {
  using Reduced = Sum;
  using Index = typename G::Index;
  const T* x;
  const T* relevance;
  const double* psi;
  Index* winners;
  bool absorb_zeros;
  G geometry;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Sum& absorbed) const {
    using A = Acc<T>;
    Index channel, output;
    geometry.out.find(static_cast<Index>(i), channel, output);
    const T* plane = x + geometry.in.sample(n);
    Index winner = -1;
    A best = A(0);
    geometry.visit(output, [&](Index position) {
      const A v = accumulated(plane[geometry.in.at(channel, position)]);
      if (winner == -1 || v > best) {
        winner = position;
        best = v;
      }
    });
    const int64_t at = geometry.out.sample(n) + i;
    const bool reached = winner != -1 && !(absorb_zeros && best == A(0));
    const A shift = static_cast<A>(shift_of(psi, n));
    absorbed.add(reached ? A(0) : shifted(accumulated(relevance[at]), shift));
    winners[at] = reached ? winner : -1;
  }
};

// What the windows without a winner absorb of a further target.
template <typename T, typename G>
struct Unwon {
  using Reduced = Sum;
  using Index = typename G::Index;
  const T* relevance;
  const double* psi;
  const Index* winners;
  int64_t samples;
  G geometry;

  template <int width>
  __device__ void run(int64_t m, int64_t i, Sum& absorbed) const {
    using A = Acc<T>;
    const A r = shifted(accumulated(relevance[geometry.out.sample(m) + i]),
                        static_cast<A>(shift_of(psi, m)));
    absorbed.add(winners[geometry.out.sample(operand_sample(m, samples)) + i] == -1 ? r : A(0));
  }
};

template <typename T, typename G>
struct GatherMax {
  using Reduced = Nothing;
  using Index = typename G::Index;
  const T* relevance;
  const double* psi;
  const Index* winners;
  T* out;
  int64_t samples;
  G geometry;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Nothing&) const {
    using A = Acc<T>;
    Index channel, input;
    geometry.in.find(static_cast<Index>(i), channel, input);
    const T* incoming = relevance + geometry.out.sample(n);
    const Index* winner = winners + geometry.out.sample(operand_sample(n, samples));
    const A shift = static_cast<A>(shift_of(psi, n));
    A sum = A(0);
    geometry.visit_readers(input, [&](Index output) {
      const Index at = geometry.out.at(channel, output);
      if (winner[at] == input) {
        sum = finite_or_zero(sum + shifted(accumulated(incoming[at]), shift));
      }
    });
    out[geometry.in.sample(n) + i] = rounded<T>(sum);
  }
};

template <typename A>
__device__ A factor(A relevance, A sum, A stabilizer, Sum& absorbed) {
  const A added = stabilizing(sum, stabilizer);
  const A whole = sum + added;
  const A quotient = safe_quotient(relevance, whole);
  absorbed.add(carries_message(whole) ? finite_or_zero(added * quotient) : relevance);
  return quotient;
}

// Relevance per unit of weight in each output's window.
template <typename T, typename S, typename G>
struct Factors {
  using Reduced = Sum;
  using Index = typename G::Index;
  const T* x;
  const T* relevance;
  const double* psi;
  Acc<T>* factors;
  Acc<T>* wholes;  // for further targets; null where there are none
  Acc<T> stabilizer;
  G geometry;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Sum& absorbed) const {
    using A = Acc<T>;
    Index channel, output;
    geometry.out.find(static_cast<Index>(i), channel, output);
    const T* plane = x + geometry.in.sample(n);
    A whole = A(0);
    geometry.visit(output, [&](Index position) {
      whole += S::weight(accumulated(plane[geometry.in.at(channel, position)]));
    });
    const int64_t at = geometry.out.sample(n) + i;
    if (wholes != nullptr) wholes[at] = whole;
    const A r = shifted(accumulated(relevance[at]), static_cast<A>(shift_of(psi, n)));
    const A of_sum = stabilizer * static_cast<A>(geometry.divisor(output));
    factors[at] = factor(r, whole, of_sum, absorbed);
  }
};

template <typename T, typename G>
struct FurtherFactors {
  using Reduced = Sum;
  const T* relevance;
  const double* psi;
  const Acc<T>* wholes;
  Acc<T>* factors;
  int64_t samples;
  Acc<T> stabilizer;
  G geometry;

  template <int width>
  __device__ void run(int64_t m, int64_t i, Sum& absorbed) const {
    using A = Acc<T>;
    typename G::Index channel, output;
    geometry.out.find(static_cast<typename G::Index>(i), channel, output);
    const int64_t at = geometry.out.sample(m) + i;
    const A r = shifted(accumulated(relevance[at]), static_cast<A>(shift_of(psi, m)));
    const A of_sum = stabilizer * static_cast<A>(geometry.divisor(output));
    factors[at] =
        factor(r, wholes[geometry.out.sample(operand_sample(m, samples)) + i], of_sum, absorbed);
  }
};

template <typename T, typename S, typename G>
struct GatherAverage {
  using Reduced = Nothing;
  using Index = typename G::Index;
  const T* x;
  const Acc<T>* factors;
  T* out;
  int64_t samples;
  G geometry;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Nothing&) const {
    using A = Acc<T>;
    Index channel, input;
    geometry.in.find(static_cast<Index>(i), channel, input);
    const int64_t at = geometry.in.sample(n) + i;
    const A weight = S::weight(accumulated(x[geometry.in.sample(operand_sample(n, samples)) + i]));
    const Acc<T>* of_sample = factors + geometry.out.sample(n);
    A sum = A(0);
    geometry.visit_readers(input, [&](Index output) {
      sum = finite_or_zero(sum + weight * of_sample[geometry.out.at(channel, output)]);
    });
    out[at] = rounded<T>(sum);
  }
};

template <typename T, typename Index>
void run_max(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,
             const PoolShape& shape, bool absorb_zeros) {
  using G = Geometry<Index>;
  const G g(shape);
  const int64_t outputs = outputs_of(shape);
  const Workspace winners(shape.samples * outputs * static_cast<int64_t>(sizeof(Index)));
  reduce_elementwise<1>("max_pool",
                        Winners<T, G>{x, relevance, psi, winners.as<Index>(), absorb_zeros, g},
                        absorbed, shape.samples, outputs, /*aligned=*/false);
  const Further<T> further(relevance, psi, absorbed, shape);
  if (further.samples > 0) {
    reduce_elementwise<1>(
        "max_pool",
        Unwon<T, G>{further.relevance, further.psi, winners.as<const Index>(), shape.samples, g},
        further.absorbed, further.samples, outputs, /*aligned=*/false);
  }
  launch_elementwise<1>(
      "max_pool", GatherMax<T, G>{relevance, psi, winners.as<const Index>(), out, shape.samples, g},
      nullptr, shape.targets * shape.samples, inputs_of(shape), /*aligned=*/false);
}

template <typename T, typename S, typename Index>
void run_average(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,
                 const PoolShape& shape, double stabilizer) {
  using G = Geometry<Index>;
  const G g(shape);
  const int64_t outputs = outputs_of(shape);
  const Further<T> further(relevance, psi, absorbed, shape);
  constexpr int64_t bytes = sizeof(Acc<T>);
  const auto away = static_cast<Acc<T>>(stabilizer);
  const int64_t all = shape.targets * shape.samples;
  const Workspace factors(all * outputs * bytes);
  const Workspace wholes(further.samples > 0 ? shape.samples * outputs * bytes : 0);
  Acc<T>* kept = further.samples > 0 ? wholes.as<Acc<T>>() : nullptr;
  reduce_elementwise<1>("avg_pool",
                        Factors<T, S, G>{x, relevance, psi, factors.as<Acc<T>>(), kept, away, g},
                        absorbed, shape.samples, outputs, /*aligned=*/false);
  if (further.samples > 0) {
    reduce_elementwise<1>("avg_pool",
                          FurtherFactors<T, G>{further.relevance, further.psi, kept,
                                               factors.as<Acc<T>>() + shape.samples * outputs,
                                               shape.samples, away, g},
                          further.absorbed, further.samples, outputs, /*aligned=*/false);
  }
  launch_elementwise<1>(
      "avg_pool", GatherAverage<T, S, G>{x, factors.as<const Acc<T>>(), out, shape.samples, g},
      nullptr, all, inputs_of(shape), /*aligned=*/false);
}

template <typename T, typename S>
auto pick_average(const PoolShape& shape) {
  return is_small(shape) ? run_average<T, S, int32_t> : run_average<T, S, int64_t>;
}

}  // namespace

template <typename T>
void max_pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,
              const PoolShape& shape, bool absorb_zeros) {
  const auto kernel = is_small(shape) ? run_max<T, int32_t> : run_max<T, int64_t>;
  kernel(x, relevance, psi, out, absorbed, shape, absorb_zeros);
}

template <typename T>
void avg_pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,
              const PoolShape& shape, Share share, double stabilizer) {
  const auto kernel = share == Share::kAbsolute ? pick_average<T, AbsoluteShare>(shape)
                      : share == Share::kRatio  ? pick_average<T, RatioShare>(shape)
                                                : pick_average<T, PositiveShare>(shape);
  kernel(x, relevance, psi, out, absorbed, shape, stabilizer);
}

#define RAPKERNELS_INSTANTIATE(T)                                                                 \
  template void max_pool(const T*, const T*, const double*, T*, double*, const PoolShape&, bool); \
  template void avg_pool(const T*, const T*, const double*, T*, double*, const PoolShape&, Share, \
                         double);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
