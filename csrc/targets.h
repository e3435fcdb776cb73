// Many targets: T relevances of each of N samples travel as T N samples, target t of sample n as
// sample t N + n.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

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

// States of `all` samples, one part after the other; values are in `format`.
class JoinedState {
 public:
  JoinedState(int64_t all, at::MemoryFormat format) : all_(all), format_(format) {}

  void append(const State& part) {
    const int64_t length = std::get<0>(part).size(0);
    append(std::get<0>(state_), std::get<0>(part));
    append(std::get<1>(state_), std::get<1>(part));
    append(std::get<2>(state_), std::get<2>(part));
    append(std::get<3>(state_), std::get<3>(part));
    begin_ += length;
  }

  const State& state() const { return state_; }

 private:
  void append(Tensor& whole, const Tensor& part) const {
    if (begin_ == 0) {
      auto shape = part.sizes().vec();
      shape[0] = all_;
      const auto of_whole = part.dim() > 1 ? format_ : at::MemoryFormat::Contiguous;
      whole = workspace_empty(shape, part.options().memory_format(of_whole));
    }
    whole.narrow(0, begin_, part.size(0)).copy_(part);
  }

  int64_t all_;
  at::MemoryFormat format_;
  int64_t begin_ = 0;
  State state_;
};

// The state of step(relevance, psi, scale) -> State, called for as many whole targets at a time as
// kSamplesAtOnce and kWorkspace allow; x has `samples` of them. Values are in `format`.
template <typename Step>
State for_target_chunks(const Tensor& relevance, const OptionalTensor& psi,
                        const OptionalTensor& scale, int64_t samples, at::MemoryFormat format,
                        const Step& step) {
  const int64_t all = relevance.size(0);
  const int64_t targets = std::max<int64_t>(1, kSamplesAtOnce / samples);
  const int64_t chunk = samples * std::min(targets, parts_at_once(relevance, all / samples));
  if (all <= chunk) return step(relevance, psi, scale);
  JoinedState joined(all, format);
  for (int64_t begin = 0; begin < all; begin += chunk) {
    const int64_t length = std::min(chunk, all - begin);
    joined.append(step(relevance.narrow(0, begin, length), narrow_samples(psi, begin, length),
                       narrow_samples(scale, begin, length)));
  }
  return joined.state();
}

}  // namespace rapkernels
