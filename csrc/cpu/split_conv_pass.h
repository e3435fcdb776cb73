// What one pass of a split convolution reads and writes, forward or back.
#pragma once

#include <array>
#include <cstdint>

#include "split_conv_axes.h"

namespace rapkernels::cpu {

enum class Source {
  kPositive,  // one part, which meets w+ alone
  kParts,     // two parts, chosen by the sign of w
  kRounded,   // those, and w, in bfloat16
};

struct Pass {
  Source source;
  std::array<Axis, 2> axes;
  int64_t channels;  // of one part of the source
  int64_t results;   // channels
  const float* weight;
  std::array<int64_t, 4> strides;  // of the weight: channel, result, row, column
  std::array<const void*, 2> in;   // the parts: bfloat16 for kRounded, else float
  int64_t samples;
  std::array<float*, 2> out;  // the second may be null
  const float* z = nullptr;   // where the results are twice the sums less z
  // Whether 16 channels of the source are summed up by themselves, as exactly as libraries do:
  // where there are few results, this costs little.
  bool in_blocks = false;

  int64_t parts() const { return source == Source::kPositive ? 1 : 2; }
  int64_t lists() const { return out[1] == nullptr ? 1 : 2; }
};

inline Pass forward_pass(const SplitConv& conv, Source source, std::array<const void*, 2> in,
                         int64_t samples, float* out) {
  const auto& w = conv.strides;
  return {source,
          {forward_axis(conv.axes[0]), forward_axis(conv.axes[1])},
          conv.inputs,
          conv.outputs,
          conv.weight,
          {w[1], w[0], w[2], w[3]},
          in,
          samples,
          {out, nullptr}};
}

inline Pass backward_pass(const SplitConv& conv, Source source, std::array<const void*, 2> in,
                          int64_t samples, std::array<float*, 2> out) {
  return {source,       {backward_axis(conv.axes[0]), backward_axis(conv.axes[1])},
          conv.outputs, conv.inputs,
          conv.weight,  conv.strides,
          in,           samples,
          out};
}

}  // namespace rapkernels::cpu
