// The emulation itself: what its barriers, shuffles and launches mean, and that it catches what it
// is there to catch.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../cpp/check.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads,
                   Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// Launches enough to see every order.
constexpr int kLaunches = 20;

__global__ void write_indices(int64_t* out, int64_t size) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) out[i] += i * gridDim.x;
}

void every_thread_runs_once() {
  for (const unsigned threads : {1u, 31u, 32u, 100u, 1024u}) {
    for (const int64_t size : {1, 99, 4097}) {
      const auto blocks = static_cast<unsigned>((size + threads - 1) / threads);
      std::vector<int64_t> out(size);
      CHECK(launch(write_indices, blocks, threads, out.data(), size) == cudaSuccess);
      for (int64_t i = 0; i < size; ++i) CHECK(out[i] == i * blocks);
    }
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) reduce(const float* x, float* sums, bool barrier) {
  __shared__ float partial[kThreads];
  const unsigned t = threadIdx.x;
  partial[t] = x[blockIdx.x * kThreads + t];
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (barrier) __syncthreads();
    if (t < half) partial[t] += partial[t + half];
  }
  if (t == 0) sums[blockIdx.x] = partial[0];
}

std::set<float> sums_of_reduction(bool barrier) {
  constexpr int kThreads = 256, kBlocks = 5;
  std::vector<float> x(kThreads * kBlocks), sums(kBlocks);
  std::iota(x.begin(), x.end(), 0.0f);
  std::set<float> found;
  for (int i = 0; i < kLaunches; ++i) {
    launch(reduce<kThreads>, kBlocks, kThreads, x.data(), sums.data(), barrier);
    found.insert(std::accumulate(sums.begin(), sums.end(), 0.0f));
  }
  return found;
}

void shared_memory_is_summed() {
  const float expected = 1279.0f * 1280 / 2;
  CHECK(sums_of_reduction(true) == std::set<float>{expected});
}

void a_missing_barrier_shows() { CHECK(sums_of_reduction(false).size() > 1); }

__global__ void vote(int* out, int bound) {
  const int t = static_cast<int>(threadIdx.x);
  const int any = __syncthreads_or(t == bound), all = __syncthreads_and(t < bound);
  const int count = __syncthreads_count(t < bound);
  const int warp_any = __any_sync(kAll, t == bound), warp_all = __all_sync(kAll, t < bound);
  const unsigned ballot = __ballot_sync(kAll, t < bound);
  const int results[] = {any, all, count, warp_any, warp_all, static_cast<int>(ballot)};
  std::copy(results, results + 6, out + 6 * t);
}

void votes_are_counted() {
  const int threads = 77;
  for (const int bound : {0, 1, 40, 64, 76, 77}) {
    std::vector<int> out(6 * threads);
    launch(vote, 1, threads, out.data(), bound);
    for (int t = 0; t < threads; ++t) {
      const int* got = &out[6 * t];
      const int begin = t / 32 * 32, end = std::min(begin + 32, threads);
      CHECK((got[0] != 0) == (bound < threads));
      CHECK((got[1] != 0) == (bound == threads));
      CHECK(got[2] == bound);
      CHECK((got[3] != 0) == (begin <= bound && bound < end));
      CHECK((got[4] != 0) == (bound >= end));
      const int below = std::clamp(bound - begin, 0, 32);
      CHECK(static_cast<unsigned>(got[5]) == (below == 32 ? kAll : (1u << below) - 1));
    }
  }
}

template <typename T>
__global__ void shuffle(T* out, int width) {
  const T own = static_cast<T>(threadIdx.x) / 2 - 7;
  T* row = out + 4 * threadIdx.x;
  row[0] = __shfl_sync(kAll, own, 3, width);
  row[1] = __shfl_up_sync(kAll, own, 5, width);
  row[2] = __shfl_down_sync(kAll, own, 5, width);
  row[3] = __shfl_xor_sync(kAll, own, 6, width);
}

template <typename T>
void shuffles_exchange() {
  const int threads = 80;
  // A lane that does not exist brings nothing.
  const auto own = [&](int t) { return t < threads ? static_cast<T>(t) / 2 - 7 : T(-99); };
  for (const int width : {8, 32}) {
    std::vector<T> out(4 * threads);
    launch(shuffle<T>, 1, threads, out.data(), width);
    for (int t = 0; t < threads; ++t) {
      const int first = t / width * width, last = first + width - 1;
      const int sources[] = {first + 3, t - 5 < first ? t : t - 5, t + 5 > last ? t : t + 5, t ^ 6};
      for (int i = 0; i < 4; ++i)
        if (sources[i] < threads) CHECK(out[4 * t + i] == own(sources[i]));
    }
  }
}

__global__ void read_absent_lanes(float* out) {
  out[threadIdx.x] = __shfl_down_sync(kAll, 1.0f, 16);
}

void absent_lanes_bring_nan() {
  std::vector<float> out(40);
  launch(read_absent_lanes, 1, 40, out.data());
  for (int t = 0; t < 40; ++t) CHECK(std::isnan(out[t]) == (t >= 32 && t < 48));
}

// Half warps exchange by themselves, as often as each wants.
__global__ void half_warps(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32), half = lane / 16;
  int sum = lane;
  for (int repeat = 0; repeat <= half; ++repeat) {
    for (int step = 8; step > 0; step /= 2)
      sum += __shfl_xor_sync(half == 0 ? 0xffffu : 0xffff0000u, sum, step);
  }
  __syncwarp();
  out[threadIdx.x] = sum;
}

void masks_are_kept_apart() {
  std::vector<int> out(64);
  launch(half_warps, 1, 64, out.data());
  for (int t = 0; t < 64; ++t) CHECK(out[t] == (t % 32 < 16 ? 120 : 376 * 16));
}

__global__ void leave_early(int* out, unsigned staying) {
  if (threadIdx.x >= staying) return;
  out[threadIdx.x] = __syncthreads_count(1);
}

void ended_threads_are_not_waited_for() {
  std::vector<int> out(50, -1);
  launch(leave_early, 1, 64, out.data(), 50);
  for (const int count : out) CHECK(count == 50);
}

__global__ void accumulate(unsigned long long* total, float* largest, int* ticket) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(total, i);
  atomicMax(largest, static_cast<float>(i));
  if (threadIdx.x == 0) ticket[atomicAdd(ticket, 1) + 1] = static_cast<int>(blockIdx.x);
}

void atomics_count_and_the_order_of_blocks_changes() {
  const int blocks = 7, threads = 33;
  std::set<std::vector<int>> orders;
  for (int repeat = 0; repeat < kLaunches; ++repeat) {
    unsigned long long total = 0;
    float largest = 0;
    std::vector<int> ticket(blocks + 1), all(blocks);
    launch(accumulate, blocks, threads, &total, &largest, ticket.data());
    CHECK(total == 231 * 230 / 2);
    CHECK(largest == 230);
    ticket.erase(ticket.begin());
    orders.insert(ticket);
    std::sort(ticket.begin(), ticket.end());
    std::iota(all.begin(), all.end(), 0);
    CHECK(ticket == all);
  }
  CHECK(orders.size() > 2);
}

void several_threads_may_launch() {
  std::vector<std::thread> hosts;
  std::vector<int> wrong(4);
  for (size_t host = 0; host < wrong.size(); ++host) {
    hosts.emplace_back([&wrong, host] {
      for (int i = 0; i < 5; ++i) wrong[host] += sums_of_reduction(true).size() != 1;
    });
  }
  for (auto& host : hosts) host.join();
  CHECK(wrong == std::vector<int>(4));
}

void bad_launches_are_refused() {
  int64_t out = -1;
  CHECK(launch(write_indices, 1, 1025, &out, 1) == cudaErrorInvalidConfiguration);
  CHECK(launch(write_indices, 0, 1, &out, 1) == cudaErrorInvalidConfiguration);
  cudaLaunchConfig_t config{};
  config.gridDim.y = 2;
  CHECK(cudaLaunchKernelEx(&config, write_indices, &out, int64_t{1}) == cudaErrorNotSupported);
  CHECK(out == -1);
}

// What a child process that runs `body` prints before it dies; "" where it lives.
template <typename Body>
std::string last_words(Body body) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char buffer[4096];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) words.append(buffer, got);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "" : words;
}

bool contains(const std::string& words, const char* part) {
  return words.find(part) != std::string::npos;
}

__global__ void diverge(int form) {
  const unsigned t = threadIdx.x;
  if (form == 0 && t < 5) {
    __syncthreads();
  } else if (form == 1 && t < 5) {
    __syncwarp();
  } else if (form == 2 && t < 5) {
    __shfl_sync(0xffu, 1, 0);
  } else {
    __syncthreads();
  }
}

__global__ void wrong_mask() { __syncwarp(1u << 7); }

void threads_that_wait_for_ever_are_told() {
  for (const int form : {0, 1, 2}) {
    const std::string words = last_words([&] { launch(diverge, 2, 64, form); });
    CHECK(contains(words, "threads wait for others that never come"));
    CHECK(contains(words, "  5 at ") && contains(words, "  59 at "));
    CHECK(contains(words, "__syncthreads (mask 0), the first is thread 5"));
  }
  CHECK(contains(last_words([] { launch(wrong_mask, 1, 32); }), "mask leaves itself out"));
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void read_behind(const float* x, float* out) {
  __syncthreads();
  out[threadIdx.x] = x[threadIdx.x + 1];
}

__global__ void write_behind_shared_memory(float* out, int index) {
  __shared__ float values[32];
  float* volatile first = values;
  first[threadIdx.x + static_cast<unsigned>(index)] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void write_behind_registers(float* out, int index) {
  float values[4] = {1, 2, 3, 4};
  float* volatile first = values;
  __syncthreads();
  first[index] = 1;
  out[threadIdx.x] = values[0];
}

int deep(volatile char* below, int levels) {
  volatile char frame[1024];
  frame[0] = *below;
  return levels == 0 ? frame[0] : deep(frame, levels - 1) + frame[0];
}

__global__ void recurse(int* out, int levels) {
  volatile char zero = 0;
  __syncthreads();
  out[threadIdx.x] = deep(&zero, levels);
}

void memory_is_guarded() {
  std::vector<float> x(32), out(32);
  std::vector<int> depths(32);
  launch(write_behind_shared_memory, 1, 32, out.data(), 0);
  launch(write_behind_registers, 1, 32, out.data(), 3);
  launch(recurse, 1, 32, depths.data(), 10);
  const auto read = last_words([&] { launch(read_behind, 1, 32, x.data(), out.data()); });
  CHECK(contains(read, "heap-buffer-overflow"));
  CHECK(contains(read, "read_behind"));
  const auto shared = last_words([&] { launch(write_behind_shared_memory, 1, 32, out.data(), 1); });
  CHECK(contains(shared, "global-buffer-overflow"));
  const auto local = last_words([&] { launch(write_behind_registers, 1, 32, out.data(), 4); });
#if !defined(EMULATION_UCONTEXT) && defined(__x86_64__)
  // It forgets the bounds on a stack that swapcontext leaves.
  CHECK(contains(local, "stack-buffer-overflow"));
#endif
  const auto outgrown = last_words([&] { launch(recurse, 1, 32, depths.data(), 1000); });
  CHECK(contains(outgrown, "AddressSanitizer"));
}
#else
void memory_is_guarded() {}
#endif

struct alignas(16) Pack {
  float at[4];
};

__global__ void read_pack(const float* x, Pack* out) { *out = *reinterpret_cast<const Pack*>(x); }

extern "C" __attribute__((weak)) void __ubsan_handle_type_mismatch_v1_abort();

void alignment_is_checked() {
  if (&__ubsan_handle_type_mismatch_v1_abort == nullptr) return;
  alignas(16) const float x[8] = {};
  Pack out;
  launch(read_pack, 1, 1, x + 4, &out);
  CHECK(contains(last_words([&] { launch(read_pack, 1, 1, x + 1, &out); }), "misaligned address"));
}

}  // namespace

int main() {
  every_thread_runs_once();
  shared_memory_is_summed();
  a_missing_barrier_shows();
  votes_are_counted();
  shuffles_exchange<int>();
  shuffles_exchange<float>();
  shuffles_exchange<double>();
  shuffles_exchange<long long>();
  absent_lanes_bring_nan();
  masks_are_kept_apart();
  ended_threads_are_not_waited_for();
  atomics_count_and_the_order_of_blocks_changes();
  several_threads_may_launch();
  bad_launches_are_refused();
  threads_that_wait_for_ever_are_told();
  memory_is_guarded();
  alignment_is_checked();
  return report();
}
