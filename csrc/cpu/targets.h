// Tasks of relevance with several targets over operands that have one.
#pragma once

#include "simd.h"

namespace rapkernels::cpu {

// Calls body(sample of the operands, sample of the relevance, task, begin, end) for every task. The
// targets of a piece follow one another, so that its operands are still in the cache.
template <typename Body>
void for_each_target_task(int64_t samples, int64_t targets, int64_t size, const Body& body) {
  const int64_t tasks = tasks_of(size);
  at::parallel_for(0, samples * tasks * targets, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t piece = i / targets;
      const int64_t task = piece % tasks;
      const int64_t n = piece / tasks;
      body(n, (i % targets) * samples + n, task, task * kTask, std::min(size, (task + 1) * kTask));
    }
  });
}

}  // namespace rapkernels::cpu
