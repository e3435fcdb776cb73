// Runs each CPU kernel once on few entries; bench/instructions.py runs it under callgrind, which
// counts inside of measured_call alone. Prints the compiler and the clone that the loader takes,
// then one line for each call in the order of the calls: its name and its elements.
#include <cstdio>

#include "cases.h"

extern "C" __attribute__((noinline)) void measured_call(const std::function<void()>& call) {
  call();
  // Not a tail call, which would end this function before the kernel begins.
  __asm__ volatile("" ::: "memory");
}

namespace {

const char* level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "default";
}

}  // namespace

int main() {
#if defined(__clang__)
  std::printf("clang %d\n", __clang_major__);
#else
  std::printf("gcc %d\n", __GNUC__);
#endif
  std::printf("%s\n", level());
  for (const auto& one : rapkernels::bench::cases(rapkernels::bench::Scale::kSmall)) {
    const auto work = one.make();
    // Once untold: symbols are resolved by the first call.
    work.run();
    measured_call(work.run);
    std::printf("%s %lld\n", one.name.c_str(), static_cast<long long>(work.elements));
  }
}
