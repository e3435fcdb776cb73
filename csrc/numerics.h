// Numeric guards that every rule shares, readable by the host compiler and by nvcc.
#pragma once

#include <cmath>
#include <limits>

#if defined(__CUDACC__)
#define RAPKERNELS_HD __host__ __device__ __forceinline__
#else
#define RAPKERNELS_HD inline
#endif

namespace rapkernels {

// Denominators at or below `tiny` carry no message. Together with the safe range of the relevance
// (see kSafeExponent) the quotient stays far from overflow: 2^20 / 2^-80 = 2^100 in float32.
template <typename T>
struct Guard;

template <>
struct Guard<float> {
  static constexpr float tiny = 0x1p-80f;
  static constexpr float largest = std::numeric_limits<float>::max();
  static constexpr float epsilon = std::numeric_limits<float>::epsilon();
};

template <>
struct Guard<double> {
  static constexpr double tiny = 0x1p-500;
  static constexpr double largest = std::numeric_limits<double>::max();
  static constexpr double epsilon = std::numeric_limits<double>::epsilon();
};

// A state whose largest magnitude leaves [2^-20, 2^20] is rescaled by a power of two.
constexpr int kSafeExponent = 20;

// The absolute form subtracts two sums of this magnitude; what is left below the bound is rounding.
constexpr int kCancellationFactor = 8;

template <typename T>
RAPKERNELS_HD T magnitude(T value) {
  return value < T(0) ? -value : value;
}

// A message that overflowed counts as no message; written so that NaN fails the comparison.
template <typename T>
RAPKERNELS_HD T finite_or_zero(T value) {
  return magnitude(value) <= Guard<T>::largest ? value : T(0);
}

// Whether a sum of messages is one: neither nothing nor an overflow. False for NaN.
template <typename T>
RAPKERNELS_HD bool carries_message(T sum) {
  return magnitude(sum) > Guard<T>::tiny && magnitude(sum) <= Guard<T>::largest;
}

// numerator / denominator, zero where there is no message or the quotient overflows.
template <typename T>
RAPKERNELS_HD T safe_quotient(T numerator, T denominator) {
  return carries_message(denominator) ? finite_or_zero(numerator / denominator) : T(0);
}

// The pending uniform shift (RAP Eq. 9), applied where the value is read.
template <typename T>
RAPKERNELS_HD T shifted(T value, T psi) {
  return value != T(0) ? value - psi : T(0);
}

}  // namespace rapkernels
