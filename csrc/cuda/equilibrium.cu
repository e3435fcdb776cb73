// Attribution Equilibrium around its convolutions: the three inputs, the sums that normalise
// relevance, the fused quotients of the three terms, and the fused gate that adds them up.
#include "../equilibrium.h"

#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

struct BothSums {
  double positive;
  double negative;

  __device__ void operator+=(const BothSums& other) {
    positive += other.positive;
    negative += other.negative;
  }
};

inline __device__ BothSums shuffled_down(const BothSums& value, int offset) {
  return {__shfl_down_sync(0xffffffffu, value.positive, offset),
          __shfl_down_sync(0xffffffffu, value.negative, offset)};
}

inline __device__ void write(const BothSums& from, SignedSums* to) {
  *to = signed_sums_of(from.positive, from.negative);
}

// The parts of a stacked operand from element `at` on.
template <typename T>
__device__ __forceinline__ Terms<T*> parts_of(T* stacked, int64_t length, int64_t at) {
  return {stacked + at, stacked + length + at, stacked + 2 * length + at};
}

template <int width, typename T>
__device__ __forceinline__ Terms<Pack<T, width>> load_terms(const Terms<const T*>& from) {
  return {load<width>(from.hedged), load<width>(from.on), load<width>(from.off)};
}

template <typename T, int width>
__device__ __forceinline__ Terms<Acc<T>> terms_at(const Terms<Pack<T, width>>& terms, int k) {
  return {accumulated(terms.hedged.at[k]), accumulated(terms.on.at[k]),
          accumulated(terms.off.at[k])};
}

template <typename T, int width>
__device__ __forceinline__ void set_terms(Terms<Pack<T, width>>& terms, int k,
                                          const Terms<Acc<T>>& values) {
  terms.hedged.at[k] = rounded<T>(values.hedged);
  terms.on.at[k] = rounded<T>(values.on);
  terms.off.at[k] = rounded<T>(values.off);
}

template <typename T, int width>
__device__ __forceinline__ void store_terms(const Terms<T*>& to,
                                            const Terms<Pack<T, width>>& terms) {
  store_pack(to.hedged, terms.hedged);
  store_pack(to.on, terms.on);
  store_pack(to.off, terms.off);
}

template <typename T>
struct Neurons {
  using Reduced = Nothing;
  const T* x;
  T* stacked;
  int64_t size;

  template <int width>
  __device__ void run(int64_t, int64_t i, Nothing&) const {
    const auto inputs = load<width>(x + i);
    Terms<Pack<T, width>> neurons;
    for (int k = 0; k < width; ++k) {
      set_terms(neurons, k, neuron_of(accumulated(inputs.at[k])));
    }
    store_terms(parts_of(stacked, size, i), neurons);
  }
};

template <typename T>
struct Sums {
  using Reduced = BothSums;
  const T* relevance;
  const double* psi;
  int64_t size;

  template <int width>
  __device__ void run(int64_t n, int64_t i, BothSums& sums) const {
    using A = Acc<T>;
    const A shift = static_cast<A>(shift_of(psi, n));
    const auto incoming = load<width>(relevance + n * size + i);
    for (int k = 0; k < width; ++k) {
      const A r = incoming_of(accumulated(incoming.at[k]), shift);
      sums.positive += static_cast<double>(r > A(0) ? r : A(0));
      sums.negative += static_cast<double>(r < A(0) ? r : A(0));
    }
  }
};

template <typename T>
struct Quotients {
  using Reduced = Sum;
  const T* messages;
  const T* relevance;
  const double* psi;
  const SignedSums* sums;
  Acc<T> ratio;
  T* quotients;
  TargetShape shape;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Sum& met) const {
    using A = Acc<T>;
    const int64_t at = n * shape.size + i;
    const int64_t of_x = n % shape.inputs * shape.size + i;
    const A shift = static_cast<A>(shift_of(psi, n));
    const SignedSums& of_sample = sums[n];
    const auto of_messages =
        load_terms<width, T>(parts_of(messages, shape.inputs * shape.size, of_x));
    const auto incoming = load<width>(relevance + at);
    Terms<Pack<T, width>> out;
    for (int k = 0; k < width; ++k) {
      const Terms<A> message = terms_at(of_messages, k);
      const Terms<A> evidence =
          evidence_of(incoming_of(accumulated(incoming.at[k]), shift), of_sample, ratio);
      set_terms(out, k, rapkernels::equilibrium_quotient(evidence, message));
      met.add(static_cast<double>(met_evidence(evidence, message)));
    }
    store_terms(parts_of(quotients, shape.samples * shape.size, at), out);
  }
};

template <typename T>
struct CountHedged {
  using Reduced = Sum;
  const T* x;
  const T* gradient;
  TargetShape shape;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Sum& count) const {
    using A = Acc<T>;
    const auto inputs = load<width>(x + n % shape.inputs * shape.size + i);
    const auto g = load<width>(gradient + n * shape.size + i);
    for (int k = 0; k < width; ++k) {
      const A c = hedged_contribution(accumulated(inputs.at[k]), accumulated(g.at[k]));
      count.add(c != A(0) ? 1.0 : 0.0);
    }
  }
};

template <typename T>
struct Contribution {
  using Reduced = Nothing;
  const T* x;
  const T* gradients;
  const double* psi;
  T* contribution;
  TargetShape shape;

  template <int width>
  __device__ void run(int64_t n, int64_t i, Nothing&) const {
    using A = Acc<T>;
    const int64_t at = n * shape.size + i;
    const A shift = static_cast<A>(psi[n]);
    const auto inputs = load<width>(x + n % shape.inputs * shape.size + i);
    const auto of_gradients =
        load_terms<width, T>(parts_of(gradients, shape.samples * shape.size, at));
    Pack<T, width> out;
    for (int k = 0; k < width; ++k) {
      out.at[k] = rounded<T>(rapkernels::equilibrium_contribution(
          accumulated(inputs.at[k]), terms_at(of_gradients, k), shift));
    }
    store_pack(contribution + at, out);
  }
};

__global__ void __launch_bounds__(kThreads)
    settle_kernel(const SignedSums* sums, const double* met, const double* count,
                  const double* scale, double* psi, double* absorbed, int64_t samples) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= samples) return;
  const EquilibriumState state = settled_equilibrium(
      sums[n], met[n], count == nullptr ? nullptr : count + n, scale == nullptr ? 1.0 : scale[n]);
  psi[n] = state.psi;
  absorbed[n] = state.absorbed;
}

template <typename T>
constexpr int wide_of() {
  return kAccess / sizeof(T);
}

}  // namespace

template <typename T>
void neurons(const T* x, T* stacked, int64_t size) {
  constexpr int wide = wide_of<T>();
  launch_elementwise<wide>("neurons", Neurons<T>{x, stacked, size}, nullptr, /*samples=*/1, size,
                           fits(wide, sizeof(T), {size}, {x, stacked}));
}

template <typename T>
void signed_sums(const T* relevance, const double* psi, SignedSums* sums, int64_t samples,
                 int64_t size) {
  constexpr int wide = wide_of<T>();
  reduce_elementwise<wide>("signed_sums", Sums<T>{relevance, psi, size}, sums, samples, size,
                           fits(wide, sizeof(T), {size}, {relevance}));
}

template <typename T>
void equilibrium_quotient(const T* messages, const T* relevance, const double* psi,
                          const SignedSums* sums, double ratio, T* quotients, double* met,
                          const TargetShape& shape) {
  constexpr int wide = wide_of<T>();
  reduce_elementwise<wide>(
      "equilibrium_quotient",
      Quotients<T>{messages, relevance, psi, sums, static_cast<Acc<T>>(ratio), quotients, shape},
      met, shape.samples, shape.size,
      fits(wide, sizeof(T), {shape.size}, {messages, relevance, quotients}));
}

template <typename T>
void count_hedged(const T* x, const T* gradient, double* count, const TargetShape& shape) {
  constexpr int wide = wide_of<T>();
  reduce_elementwise<wide>("count_hedged", CountHedged<T>{x, gradient, shape}, count, shape.samples,
                           shape.size, fits(wide, sizeof(T), {shape.size}, {x, gradient}));
}

template <typename T>
void equilibrium_contribution(const T* x, const T* gradients, const double* psi, T* contribution,
                              const TargetShape& shape) {
  constexpr int wide = wide_of<T>();
  launch_elementwise<wide>(
      "equilibrium_contribution", Contribution<T>{x, gradients, psi, contribution, shape}, nullptr,
      shape.samples, shape.size, fits(wide, sizeof(T), {shape.size}, {x, gradients, contribution}));
}

void settle_equilibrium(const SignedSums* sums, const double* met, const double* count,
                        const double* scale, double* psi, double* absorbed, int64_t samples) {
  launch("settle_equilibrium", settle_kernel, (samples + kThreads - 1) / kThreads, kThreads, sums,
         met, count, scale, psi, absorbed, samples);
}

#define RAPKERNELS_INSTANTIATE(T)                                                                  \
  template void neurons(const T*, T*, int64_t);                                                    \
  template void signed_sums(const T*, const double*, SignedSums*, int64_t, int64_t);               \
  template void equilibrium_quotient(const T*, const T*, const double*, const SignedSums*, double, \
                                     T*, double*, const TargetShape&);                             \
  template void count_hedged(const T*, const T*, double*, const TargetShape&);                     \
  template void equilibrium_contribution(const T*, const T*, const double*, T*, const TargetShape&);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
