// The passes of a depthwise convolution of any sign on the CPU. Tensors are channels-last.
#pragma once

#include <array>
#include <cstdint>

#include "../kernels.h"
#include "split_conv.h"

namespace rapkernels::cpu {

template <typename T>
struct Depthwise {
  int64_t channels;
  std::array<SplitAxis, 2> axes;
  const T* filters;  // (row, column, channel)
};

// Z+ and Z- of x: the sums of the positive messages and of the magnitudes of the negative ones.
template <typename T>
void depthwise_sums(const Depthwise<T>& conv, const T* x, int64_t samples, T* positive,
                    T* negative);

// C = sum of m+ S+ + |m-| S- over the messages m of each input, with the statistics of each sample.
// S+ and S- have `samples` samples, x `period` of them: sample n goes with n % period.
template <typename T>
void depthwise_contribution(const Depthwise<T>& conv, const T* x, int64_t period, const T* positive,
                            const T* negative, int64_t samples, T* contribution,
                            Statistics* statistics);

}  // namespace rapkernels::cpu
