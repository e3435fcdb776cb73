// The few assertions that the C++ tests need: count failures, print where, return them from main.
#pragma once

#include <cmath>
#include <cstdio>

inline int failures = 0;
inline int checks = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    ++checks;                                                             \
    if (!(condition)) {                                                   \
      ++failures;                                                         \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                     \
  } while (0)

#define CHECK_NEAR(got, wanted, tolerance)                                                        \
  do {                                                                                            \
    ++checks;                                                                                     \
    const double got_ = static_cast<double>(got);                                                 \
    const double wanted_ = static_cast<double>(wanted);                                           \
    if (!(std::fabs(got_ - wanted_) <= (tolerance))) {                                            \
      ++failures;                                                                                 \
      std::printf("%s:%d: %s is %.17g, wanted %.17g\n", __FILE__, __LINE__, #got, got_, wanted_); \
    }                                                                                             \
  } while (0)

inline int report() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
