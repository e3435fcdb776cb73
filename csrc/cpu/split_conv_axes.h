// Which sources a result of a split convolution meets, one dimension at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "split_conv.h"

namespace rapkernels::cpu {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t divide_down(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// A position of the kernel: it reads the sources that are `phase` modulo the source's step, `shift`
// of them on.
struct Tap {
  int64_t index;
  int64_t phase;
  int64_t shift;
};

// One dimension of a pass. Results that are result_step apart have the same taps; sources that are
// source_step apart lie next to each other in a plane.
struct Axis {
  int64_t results;
  int64_t result_step;
  int64_t sources;
  int64_t source_step;
  std::vector<std::vector<Tap>> taps;  // of each phase of the results

  int64_t positions(int64_t phase) const { return divide_up(results - phase, result_step); }
  int64_t phases() const { return std::min(result_step, results); }
};

inline Axis forward_axis(const SplitAxis& axis) {
  std::vector<Tap> taps;
  for (int64_t k = 0; k < axis.kernel; ++k) {
    const int64_t offset = k * axis.dilation - axis.low;
    const int64_t shift = divide_down(offset, axis.step);
    taps.push_back({k, offset - shift * axis.step, shift});
  }
  return {axis.results, 1, axis.size, axis.step, {taps}};
}

inline Axis backward_axis(const SplitAxis& axis) {
  Axis out{axis.size, axis.step, axis.results, 1, {}};
  for (int64_t phase = 0; phase < axis.step; ++phase) {
    std::vector<Tap> taps;
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t offset = phase + axis.low - k * axis.dilation;
      const int64_t shift = divide_down(offset, axis.step);
      if (shift * axis.step == offset) taps.push_back({k, 0, shift});
    }
    out.taps.push_back(taps);
  }
  return out;
}

struct Range {
  int64_t low;
  int64_t high;
  int64_t length() const { return high - low; }
};

inline Range shifts_of(const std::vector<Tap>& taps) {
  Range range{taps.front().shift, taps.front().shift};
  for (const Tap& tap : taps) {
    range.low = std::min(range.low, tap.shift);
    range.high = std::max(range.high, tap.shift);
  }
  return range;
}

}  // namespace rapkernels::cpu
