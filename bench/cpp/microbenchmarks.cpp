// Seconds of each CPU kernel on the sizes of real layers, with torch's number of threads
// (OMP_NUM_THREADS): microbenchmarks --benchmark_filter=gate
#include <benchmark/benchmark.h>

#include "cases.h"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const auto& one : rapkernels::bench::cases(rapkernels::bench::Scale::kLayers)) {
    benchmark::RegisterBenchmark(one.name.c_str(),
                                 [make = one.make](benchmark::State& state) {
                                   const auto work = make();
                                   for (auto _ : state) {
                                     work.run();
                                     benchmark::ClobberMemory();
                                   }
                                   state.SetItemsProcessed(state.iterations() * work.elements);
                                   state.SetBytesProcessed(state.iterations() * work.bytes);
                                 })
        // Threads of OpenMP work beside the one that is timed.
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
