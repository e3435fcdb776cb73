// What the CPU kernels need of libtorch, which takes callgrind longer to load than the kernels to
// count: its threads. There is one.
#include <ATen/Parallel.h>
#include <c10/util/ParallelGuard.h>

namespace at {

int get_num_threads() { return 1; }
int get_thread_num() { return 0; }
bool in_parallel_region() { return false; }
void init_num_threads() {}

namespace internal {
void set_thread_num(int) {}
}  // namespace internal

}  // namespace at

namespace c10 {

ParallelGuard::ParallelGuard(bool state) : previous_state_(state) {}
ParallelGuard::~ParallelGuard() = default;

}  // namespace c10
