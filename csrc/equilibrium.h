// The scalar mathematics of Attribution Equilibrium, for the host and for nvcc. Its three terms
// spread evidence over the active neurons by x+ |w|, over all active ones by |w|, and over the
// inactive ones by |w|.
#pragma once

#include "kernels.h"
#include "numerics.h"

namespace rapkernels {

// One number for each term.
template <typename T>
struct Terms {
  T hedged;
  T on;
  T off;
};

// What a neuron counts in each term; nothing for NaN.
template <typename T>
RAPKERNELS_HD Terms<T> neuron_of(T x) {
  return {x > T(0) ? x : T(0), x > T(0) ? T(1) : T(0), x <= T(0) ? T(1) : T(0)};
}

// With the rates of a sample; 0 for relevance that is not there.
RAPKERNELS_HD SignedSums signed_sums_of(double positive, double negative) {
  return {positive, negative, safe_quotient(1.0, positive), safe_quotient(1.0, -negative)};
}

// The relevance of an output, its pending shift applied; an overflow is none.
template <typename T>
RAPKERNELS_HD T incoming_of(T relevance, T psi) {
  return finite_or_zero(shifted(relevance, psi));
}

// The evidence of an output in each term: ratio P + N, P and N.
template <typename T>
RAPKERNELS_HD Terms<T> evidence_of(T relevance, const SignedSums& sums, T ratio) {
  const double rate = relevance > T(0) ? sums.positive_rate : sums.negative_rate;
  const T share = static_cast<T>(static_cast<double>(relevance) * rate);
  const T positive = share > T(0) ? share : T(0);
  const T negative = share > T(0) ? T(0) : share;
  return {finite_or_zero(ratio * positive + negative), positive, negative};
}

template <typename T>
RAPKERNELS_HD Terms<T> equilibrium_quotient(const Terms<T>& evidence, const Terms<T>& messages) {
  return {safe_quotient(evidence.hedged, messages.hedged), safe_quotient(evidence.on, messages.on),
          safe_quotient(evidence.off, messages.off)};
}

// The part of the evidence that meets neurons, all terms together.
template <typename T>
RAPKERNELS_HD T met_evidence(const Terms<T>& evidence, const Terms<T>& messages) {
  return (carries_message(messages.hedged) ? evidence.hedged : T(0)) +
         ((carries_message(messages.on) ? evidence.on : T(0)) +
          (carries_message(messages.off) ? evidence.off : T(0)));
}

// The first term of a neuron, before its shift.
template <typename T>
RAPKERNELS_HD T hedged_contribution(T x, T gradient) {
  return x > T(0) ? finite_or_zero(x * gradient) : T(0);
}

// All terms of a neuron, the first shifted.
template <typename T>
RAPKERNELS_HD T equilibrium_contribution(T x, const Terms<T>& gradient, T psi) {
  const T hedged = shifted(hedged_contribution(x, gradient.hedged), psi);
  const T spread = x > T(0) ? gradient.on : (x <= T(0) ? gradient.off : T(0));
  return finite_or_zero(hedged + finite_or_zero(spread));
}

struct EquilibriumState {
  double psi;
  double absorbed;
};

// `met`: the sum of the evidence that meets neurons. `count`: of the non-zero contributions that
// share the shift, by which the sum of P is taken off; null for no shift.
RAPKERNELS_HD EquilibriumState settled_equilibrium(const SignedSums& sums, double met,
                                                   const double* count, double scale) {
  const bool shifts = count != nullptr && *count > 0 && carries_message(sums.positive);
  const double expected = met - (shifts ? 1.0 : 0.0);
  return {shifts ? 1.0 / *count : 0.0, (sums.positive + sums.negative) * scale - expected};
}

}  // namespace rapkernels
