// Calls of the CPU kernels on the sizes of real layers, float32: what microbenchmarks.cpp times and
// count_instructions.cpp has counted.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace rapkernels::bench {

// One call on operands that are already there.
// elements: entries of the kernel's main operand: relevance, a weight, or a layer's input.
// bytes: every operand and result once, a linear layer's weight included.
struct Work {
  int64_t elements;
  int64_t bytes;
  std::function<void()> run;
};

// `make` allocates, so that one case's operands live at a time.
struct Case {
  std::string name;
  std::function<Work()> make;
};

enum class Scale {
  kLayers,  // of VGG-16 and ResNet-50, batch 4
  kSmall,   // the same loops on few entries
};

std::vector<Case> cases(Scale scale);

}  // namespace rapkernels::bench
