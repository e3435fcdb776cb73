// Attribution Equilibrium around its convolutions: the three inputs, the sums that normalise
// relevance, the fused quotients of the three terms, and the fused gate that adds them up.
#include "../equilibrium.h"

#include "simd.h"

namespace rapkernels::cpu {
namespace {

template <typename T>
RAPKERNELS_CLONES void neurons_run(const T* __restrict x, T* __restrict hedged, T* __restrict on,
                                   T* __restrict off, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const Terms<T> neuron = neuron_of(x[i]);
    hedged[i] = neuron.hedged;
    on[i] = neuron.on;
    off[i] = neuron.off;
  }
}

template <typename T>
RAPKERNELS_CLONES void sums_run(const T* __restrict relevance, T psi, int64_t size,
                                Sum<T>* positive, Sum<T>* negative) {
  T above[kRun], below[kRun];
  for (int64_t i = 0; i < size; ++i) {
    const T r = incoming_of(relevance[i], psi);
    above[i] = r > T(0) ? r : T(0);
    below[i] = r < T(0) ? r : T(0);
  }
  positive->add(above, size);
  negative->add(below, size);
}

template <typename T>
RAPKERNELS_CLONES void quotient_run(const Terms<const T*> messages, const T* __restrict relevance,
                                    T psi, const SignedSums sums, T ratio,
                                    const Terms<T*> quotients, int64_t size, Sum<T>* met) {
  T of_met[kRun];
  for (int64_t i = 0; i < size; ++i) {
    const Terms<T> message{messages.hedged[i], messages.on[i], messages.off[i]};
    const Terms<T> evidence = evidence_of(incoming_of(relevance[i], psi), sums, ratio);
    const Terms<T> quotient = equilibrium_quotient(evidence, message);
    quotients.hedged[i] = quotient.hedged;
    quotients.on[i] = quotient.on;
    quotients.off[i] = quotient.off;
    of_met[i] = met_evidence(evidence, message);
  }
  met->add(of_met, size);
}

template <typename T>
RAPKERNELS_CLONES void count_run(const T* __restrict x, const T* __restrict gradient, int64_t size,
                                 Sum<T>* count) {
  T active[kRun];
  for (int64_t i = 0; i < size; ++i) {
    active[i] = hedged_contribution(x[i], gradient[i]) != T(0) ? T(1) : T(0);
  }
  count->add(active, size);
}

template <typename T>
RAPKERNELS_CLONES void contribution_run(const T* __restrict x, const Terms<const T*> gradients,
                                        T psi, T* __restrict contribution, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const Terms<T> gradient{gradients.hedged[i], gradients.on[i], gradients.off[i]};
    contribution[i] = equilibrium_contribution(x[i], gradient, psi);
  }
}

template <typename T>
Terms<T*> parts_of(T* stacked, int64_t length, int64_t at) {
  return {stacked + at, stacked + length + at, stacked + 2 * length + at};
}

// Calls run(begin, length) for the pieces of a task that fit in L1.
template <typename Run>
void for_each_run(int64_t begin, int64_t end, const Run& run) {
  for (int64_t i = begin; i < end; i += kRun) run(i, std::min(kRun, end - i));
}

}  // namespace

template <typename T>
void neurons(const T* x, T* stacked, int64_t size) {
  for_each_task(1, size, [&](int64_t, int64_t, int64_t begin, int64_t end) {
    const Terms<T*> parts = parts_of(stacked, size, begin);
    neurons_run(x + begin, parts.hedged, parts.on, parts.off, end - begin);
  });
}

template <typename T>
void signed_sums(const T* relevance, const double* psi, SignedSums* sums, int64_t samples,
                 int64_t size) {
  const int64_t tasks = tasks_of(size);
  std::vector<double> of_positive(samples * tasks), of_negative(samples * tasks);
  for_each_task(samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Sum<T> positive, negative;
    const T shift = static_cast<T>(psi_of(psi, n));
    for_each_run(begin, end, [&](int64_t i, int64_t length) {
      sums_run(relevance + n * size + i, shift, length, &positive, &negative);
    });
    of_positive[n * tasks + task] = positive.value();
    of_negative[n * tasks + task] = negative.value();
  });
  std::vector<double> positive(samples), negative(samples);
  reduce(of_positive, positive.data(), samples);
  reduce(of_negative, negative.data(), samples);
  for (int64_t n = 0; n < samples; ++n) sums[n] = signed_sums_of(positive[n], negative[n]);
}

template <typename T>
void equilibrium_quotient(const T* messages, const T* relevance, const double* psi,
                          const SignedSums* sums, double ratio, T* quotients, double* met,
                          const TargetShape& shape) {
  const int64_t size = shape.size;
  std::vector<double> partial(shape.samples * tasks_of(size));
  for_each_task(shape.samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Sum<T> sum;
    const T shift = static_cast<T>(psi_of(psi, n));
    for_each_run(begin, end, [&](int64_t i, int64_t length) {
      quotient_run(parts_of(messages, shape.inputs * size, n % shape.inputs * size + i),
                   relevance + n * size + i, shift, sums[n], static_cast<T>(ratio),
                   parts_of(quotients, shape.samples * size, n * size + i), length, &sum);
    });
    partial[n * tasks_of(size) + task] = sum.value();
  });
  reduce(partial, met, shape.samples);
}

template <typename T>
void count_hedged(const T* x, const T* gradient, double* count, const TargetShape& shape) {
  const int64_t size = shape.size;
  std::vector<double> partial(shape.samples * tasks_of(size));
  for_each_task(shape.samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Sum<T> sum;
    for_each_run(begin, end, [&](int64_t i, int64_t length) {
      count_run(x + n % shape.inputs * size + i, gradient + n * size + i, length, &sum);
    });
    partial[n * tasks_of(size) + task] = sum.value();
  });
  reduce(partial, count, shape.samples);
}

template <typename T>
void equilibrium_contribution(const T* x, const T* gradients, const double* psi, T* contribution,
                              const TargetShape& shape) {
  const int64_t size = shape.size;
  for_each_task(shape.samples, size, [&](int64_t n, int64_t, int64_t begin, int64_t end) {
    const int64_t at = n * size + begin;
    contribution_run(x + n % shape.inputs * size + begin,
                     parts_of(gradients, shape.samples * size, at), static_cast<T>(psi[n]),
                     contribution + at, end - begin);
  });
}

void settle_equilibrium(const SignedSums* sums, const double* met, const double* count,
                        const double* scale, double* psi, double* absorbed, int64_t samples) {
  for (int64_t n = 0; n < samples; ++n) {
    const EquilibriumState state = settled_equilibrium(
        sums[n], met[n], count == nullptr ? nullptr : count + n, scale == nullptr ? 1.0 : scale[n]);
    psi[n] = state.psi;
    absorbed[n] = state.absorbed;
  }
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
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
