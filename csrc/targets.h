// Many targets: T relevances of each of N samples travel as T N samples, target t of sample n as
// sample t N + n.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>

#include "state.h"
#include "workspace.h"

namespace rapkernels {

inline int64_t targets_of(const Tensor& x, const Tensor& relevance) {
  return x.size(0) ? relevance.size(0) / x.size(0) : 1;
}

// Like x, but with the samples of `relevance`; to be written.
inline Tensor empty_for_targets(const Tensor& x, const Tensor& relevance, at::MemoryFormat format) {
  auto shape = x.sizes().vec();
  shape[0] = relevance.size(0);
  return workspace_empty(shape, x.options().memory_format(format));
}

// Samples of the quotients that are held at a time, where x has no more: a convolution's S+ and S-
// are twice as large as its output.
constexpr int64_t kSamplesAtOnce = 16;
// On the CPU, bytes of S+ and S- beyond which less is done at a time, one part in the memory of the
// one before: what is larger, malloc takes from the system anew, page by page.
constexpr int64_t kWorkspace = 32 * 1024 * 1024;

// How many of `count` equal parts of a relevance fill the workspace.
inline int64_t parts_at_once(const Tensor& relevance, int64_t count) {
  if (!relevance.is_cpu()) return count;
  const int64_t bytes = std::max<int64_t>(1, 2 * static_cast<int64_t>(relevance.nbytes()) / count);
  return std::clamp<int64_t>(kWorkspace / bytes, 1, count);
}

inline OptionalTensor narrow_samples(const OptionalTensor& t, int64_t begin, int64_t length) {
  if (!t) return t;
  return t->narrow(0, begin, length);
}

// States of `all` samples, one part after the other; values are like those of x, in `format`.
class JoinedState {
 public:
  JoinedState(const Tensor& x, int64_t all, at::MemoryFormat format) {
    auto shape = x.sizes().vec();
    shape[0] = all;
    std::get<0>(state_) = workspace_empty(shape, x.options().memory_format(format));
    const Tensor& values = std::get<0>(state_);
    std::get<1>(state_) = per_sample(values);
    std::get<2>(state_) = per_sample(values);
    std::get<3>(state_) = per_sample(values);
  }

  // Where the values of the next part may be written; others are copied.
  Tensor room(int64_t length) const { return std::get<0>(state_).narrow(0, begin_, length); }

  void append(const State& part) {
    const int64_t length = std::get<0>(part).size(0);
    const auto put = [&](const Tensor& whole, const Tensor& values) {
      const Tensor to = whole.narrow(0, begin_, length);
      if (to.const_data_ptr() != values.const_data_ptr()) to.copy_(values);
    };
    put(std::get<0>(state_), std::get<0>(part));
    put(std::get<1>(state_), std::get<1>(part));
    put(std::get<2>(state_), std::get<2>(part));
    put(std::get<3>(state_), std::get<3>(part));
    begin_ += length;
  }

  const State& state() const { return state_; }

 private:
  int64_t begin_ = 0;
  State state_;
};

// The state of step(relevance, psi, scale, room) -> State, called for as many whole targets at a
// time as kSamplesAtOnce and kWorkspace allow. Values are like x, but for their samples, and in
// `format`; `room`, unless undefined, is where they may be written.
template <typename Step>
State for_target_chunks(const Tensor& x, const Tensor& relevance, const OptionalTensor& psi,
                        const OptionalTensor& scale, at::MemoryFormat format, const Tensor& room,
                        const Step& step) {
  const int64_t samples = x.size(0);
  const int64_t all = relevance.size(0);
  const int64_t targets = std::max<int64_t>(1, kSamplesAtOnce / samples);
  const int64_t chunk = samples * std::min(targets, parts_at_once(relevance, all / samples));
  if (all <= chunk) return step(relevance, psi, scale, room);
  JoinedState joined(x, all, format);
  for (int64_t begin = 0; begin < all; begin += chunk) {
    const int64_t length = std::min(chunk, all - begin);
    joined.append(step(relevance.narrow(0, begin, length), narrow_samples(psi, begin, length),
                       narrow_samples(scale, begin, length), joined.room(length)));
  }
  return joined.state();
}

}  // namespace rapkernels
