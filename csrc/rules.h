// The scalar rules of the contribution algebra: (R, Z+, Z-) -> (S+, S-), for the host and for nvcc.
// rapkernels/reference/_scalar_rules.py has the same as tensors.
// Z+ and Z- are magnitudes: the sums of the positive and of the negative messages of one output.
#pragma once

#include "kernels.h"
#include "numerics.h"

namespace rapkernels {

template <typename T>
struct Quotient {
  T positive;
  T negative;
};

// S+ and S-, and what of R they do not hand on: what bias and stabilizer took, and what met
// nothing.
template <typename T>
struct Shares {
  T positive;
  T negative;
  T absorbed;
};

// RAP Eq. 7 (linear layers): S+ = R / Z+, S- = rho R / |Z-| = R / (Z+ + |Z-|).
struct Rap {
  static constexpr bool shifts = true;

  template <typename T>
  static RAPKERNELS_HD Quotient<T> quotient(T relevance, T positive, T negative) {
    const T shared = safe_quotient(relevance, positive + negative);
    return {safe_quotient(relevance, positive), carries_message(negative) ? shared : T(0)};
  }
};

// RAP's published convolution rule: negative relevance travels through the negative messages only.
struct RapConv {
  static constexpr bool shifts = true;

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

// R / stab(Z + b) for Z + b, with stab(z) = z + stabilizer sign(z) and sign(0) = 1, and what the
// bias and the stabilizer take: all of R where there is no quotient.
template <typename T>
struct Stabilized {
  T quotient;
  T absorbed;
};

template <typename T>
RAPKERNELS_HD Stabilized<T> stabilized(T relevance, T whole, T bias, T stabilizer) {
  const T added = whole < T(0) ? -stabilizer : stabilizer;
  const T quotient = safe_quotient(relevance, whole + added);
  // Selects without branches and without short circuits: what the compiler turns into vectors.
  const T taken = quotient * (bias + added);
  const T absorbed = quotient == T(0) ? relevance : taken;
  return {quotient, magnitude(taken) <= Guard<T>::largest ? absorbed : relevance};
}

// The rules without shift. RAP Eq. 6 for relevance at several outputs: in proportion to |m|.
template <typename T>
struct Absolute {
  static constexpr bool shifts = false;

  explicit Absolute(const double*) {}

  RAPKERNELS_HD Shares<T> shares(T relevance, T positive, T negative, T) const {
    const Stabilized<T> s = stabilized(relevance, positive + negative, T(0), T(0));
    return {s.quotient, s.quotient, s.absorbed};
  }
};

// LRP-gamma for inputs and outputs of both signs: messages and bias of the output's sign are
// favoured by 1 + gamma; an output of 0 has no sign and hands nothing on.
template <typename T>
struct Gamma {
  static constexpr bool shifts = false;
  T gamma;
  T stabilizer;

  explicit Gamma(const double* parameters)
      : gamma(static_cast<T>(parameters[0])), stabilizer(static_cast<T>(parameters[1])) {}

  RAPKERNELS_HD Shares<T> shares(T relevance, T positive, T negative, T bias) const {
    const T whole = positive - negative + bias;
    const bool above = whole > T(0);
    const T up = bias > T(0) ? bias : T(0);
    const T down = bias < T(0) ? bias : T(0);
    const T bias_favoured = above ? up : down;
    const T favoured = (above ? positive : -negative) + bias_favoured;
    const Stabilized<T> s = stabilized(whole != T(0) ? relevance : T(0), whole + gamma * favoured,
                                       bias + gamma * bias_favoured, stabilizer);
    const T more = (T(1) + gamma) * s.quotient;
    return {above ? more : s.quotient, above ? -s.quotient : -more,
            whole != T(0) ? s.absorbed : relevance};
  }
};

// LRP-alpha-beta: alpha by the positive messages and bias, less beta by the negative ones.
template <typename T>
struct AlphaBeta {
  static constexpr bool shifts = false;
  T alpha;
  T beta;
  T stabilizer;

  explicit AlphaBeta(const double* parameters)
      : alpha(static_cast<T>(parameters[0])),
        beta(static_cast<T>(parameters[1])),
        stabilizer(static_cast<T>(parameters[2])) {}

  RAPKERNELS_HD Shares<T> shares(T relevance, T positive, T negative, T bias) const {
    const T up = bias > T(0) ? bias : T(0);
    const T down = bias < T(0) ? -bias : T(0);
    const Stabilized<T> supporting = stabilized(relevance, positive + up, up, stabilizer);
    const Stabilized<T> opposing = stabilized(relevance, negative + down, down, stabilizer);
    const T absorbed = relevance - alpha * (relevance - supporting.absorbed) +
                       beta * (relevance - opposing.absorbed);
    return {alpha * supporting.quotient, -beta * opposing.quotient,
            magnitude(absorbed) <= Guard<T>::largest ? absorbed : relevance};
  }
};

// Calls body(rule) with the rule that computes in T. Epsilon is not one of them: it is `stabilized`
// itself, of z, whose rounding is less than that of Z+ - Z-.
template <typename T, typename Body>
auto with_rule(const Rule& rule, const Body& body) {
  switch (rule.kind) {
    case Rule::kRap:
      return body(Rap());
    case Rule::kRapConv:
      return body(RapConv());
    case Rule::kAbsolute:
      return body(Absolute<T>(rule.parameters));
    case Rule::kGamma:
      return body(Gamma<T>(rule.parameters));
    default:
      return body(AlphaBeta<T>(rule.parameters));
  }
}

// The absolute form: Z+- = (A +- z) / 2 from A = |w| * |x| and z = w * x, guarded against
// cancellation.
template <typename T>
RAPKERNELS_HD Quotient<T> split_absolute(T z, T absolute) {
  const T rounding = T(kCancellationFactor) * Guard<T>::epsilon * absolute;
  const T positive = (absolute + z) * T(0.5);
  const T negative = (absolute - z) * T(0.5);
  return {positive > rounding ? positive : T(0), negative > rounding ? negative : T(0)};
}

// Z+ = z + Z- for a Z- that lost up to 2^-8 of itself and of its two factors to bfloat16: what is
// left below the bound is that rounding.
constexpr float kRoundedCancellation = 0x1p-6f;

RAPKERNELS_HD Quotient<float> split_rounded(float z, float negative) {
  const float positive = z + negative;
  return {positive > kRoundedCancellation * negative ? positive : 0.0f, negative};
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

// Positive: zero and negative terms keep a small share, as in the Attribution Equilibrium authors'
// pools.
struct PositiveShare {
  template <typename T>
  static RAPKERNELS_HD T weight(T value) {
    return (value > T(0) ? value : T(0)) + T(1e-9);
  }
};

// What moves a sum of shares away from 0, by its sign.
template <typename T>
RAPKERNELS_HD T stabilizing(T sum, T stabilizer) {
  return sum < T(0) ? -stabilizer : stabilizer;
}

// Sharing ratio: the vector v over the channels of one position, whose relevance is the scalar R.
// A vector whose norm is at or below `tiny` has no direction to share by.
template <typename T>
RAPKERNELS_HD bool carries_vector(double square) {
  const double tiny = static_cast<double>(Guard<T>::tiny);
  return square > tiny * tiny && square <= Guard<double>::largest;
}

// G = v R / ||v||^2: entry c is (v_c / ||v||) (R / ||v||), so that no intermediate leaves the
// range.
struct Gradient {
  template <typename T>
  static RAPKERNELS_HD T entry(T direction, T amount) {
    return finite_or_zero(direction * amount);
  }
  static RAPKERNELS_HD double amount(double relevance, double norm) { return relevance / norm; }
};

// v_c^2 R / ||v||^2.
struct Squares {
  template <typename T>
  static RAPKERNELS_HD T entry(T direction, T amount) {
    return finite_or_zero(direction * direction * amount);
  }
  static RAPKERNELS_HD double amount(double relevance, double) { return relevance; }
};

}  // namespace rapkernels
