// The scalar rules of the contribution algebra: (R, Z+, Z-) -> (S+, S-), for the host and for nvcc.
// Z+ and Z- are magnitudes: the sums of the positive and of the negative messages of one output.
#pragma once

#include "numerics.h"

namespace rapkernels {

template <typename T>
struct Quotient {
  T positive;
  T negative;
};

// RAP Eq. 7 (linear layers): S+ = R / Z+, S- = rho R / |Z-| = R / (Z+ + |Z-|).
struct Rap {
  template <typename T>
  static RAPKERNELS_HD Quotient<T> quotient(T relevance, T positive, T negative) {
    const T shared = safe_quotient(relevance, positive + negative);
    return {safe_quotient(relevance, positive), carries_message(negative) ? shared : T(0)};
  }
};

// RAP's published convolution rule: negative relevance travels through the negative messages only.
struct RapConv {
  template <typename T>
  static RAPKERNELS_HD Quotient<T> quotient(T relevance, T positive, T negative) {
    const T supporting = relevance > T(0) ? relevance : T(0);
    const T opposing = relevance > T(0) ? T(0) : relevance;
    const T shared = safe_quotient(relevance, positive + negative);
    return {safe_quotient(supporting, positive),
            carries_message(negative) ? finite_or_zero(safe_quotient(opposing, negative) + shared)
                                      : T(0)};
  }
};

// The absolute form: Z+- = (A +- z) / 2 from A = |w| * |x| and z = w * x, guarded against
// cancellation.
template <typename T>
RAPKERNELS_HD Quotient<T> split_absolute(T z, T absolute) {
  const T rounding = T(kCancellationFactor) * Guard<T>::epsilon * absolute;
  const T positive = (absolute + z) * T(0.5);
  const T negative = (absolute - z) * T(0.5);
  return {positive > rounding ? positive : T(0), negative > rounding ? negative : T(0)};
}

// Shares of a residual add or an average. Absolute: |a| / (|a| + |b|), bounded and conserving.
struct AbsoluteShare {
  template <typename T>
  static RAPKERNELS_HD T weight(T value) {
    return magnitude(value);
  }
};

// Ratio: a / (a + b), as the RAP authors' code does; unbounded where the terms cancel.
struct RatioShare {
  template <typename T>
  static RAPKERNELS_HD T weight(T value) {
    return value;
  }
};

}  // namespace rapkernels
