// What becomes of one sample when its relevance is stored: the power of two that keeps it in range,
// and the uniform shift that is left pending (RAP Eq. 9). For the host and for nvcc.
#pragma once

#include <cmath>

#include "kernels.h"
#include "numerics.h"

namespace rapkernels {

// float16 keeps most small entries when the largest is near the top of its range.
constexpr int kHalfExponent = 14;

// Bounds of the power of two: of itself in a double, and of the shift that it multiplies in T.
constexpr int kLargestMove = 1000;
constexpr int kLargestShift = 100;

RAPKERNELS_HD int exponent_of(double value) {
  return value > 0 && value <= Guard<double>::largest ? ilogb(value) : 0;
}

// The shift of a sample whose contributions were multiplied by `factor`; zero without a total.
RAPKERNELS_HD double pending_shift(const Statistics& measured, const double* total, double factor) {
  return total != nullptr && measured.count > 0 ? (measured.sum - *total * factor) / measured.count
                                                : 0.0;
}

// The power of two that a sample is multiplied by before it is stored. `narrow`: the storage type
// is narrower than the values, so that they are stored anew in any case.
RAPKERNELS_HD double storage_factor(const Statistics& measured, const double* total,
                                    Storage storage, bool narrow) {
  const double largest = measured.largest;
  if (!(largest > 0) || !(largest <= Guard<double>::largest)) return 1.0;
  const int exponent = exponent_of(largest);
  if (!narrow && exponent >= -kSafeExponent && exponent <= kSafeExponent) return 1.0;
  const int target = storage == Storage::kFloat16 ? kHalfExponent : 0;
  int move = target - exponent;
  move = move < -kLargestMove ? -kLargestMove : (move > kLargestMove ? kLargestMove : move);
  const int room =
      kLargestShift - exponent_of(magnitude(pending_shift(measured, total, /*factor=*/1.0)));
  return ldexp(1.0, move < room ? move : room);
}

struct Settled {
  double psi;
  double scale;
  double absorbed;
};

// `measured` is of the stored values. Without a contribution nothing can take the total: absorbed.
RAPKERNELS_HD Settled settled(const Statistics& measured, const double* total, double factor,
                              double scale) {
  return {pending_shift(measured, total, factor), scale / factor,
          total != nullptr && !(measured.count > 0) ? *total * scale : 0.0};
}

}  // namespace rapkernels
