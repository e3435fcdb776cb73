// Runs CUDA kernels on the CPU, to test them where there is no GPU: blocks in a loop, the threads
// of a block as fibers, which leave the processor only where CUDA lets threads wait for one
// another.
//
// What CUDA leaves open is made to show. The order of blocks and of threads changes from launch to
// launch, so that a missing barrier changes results; threads that can never go on abort the process
// with the places at which they wait; address sanitizer knows every stack.
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>
#if defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_ASSEMBLY
#else
#include <ucontext.h>
#endif

// How address sanitizer hears of another stack. Found at run time: this file itself is compiled
// without it, for speed.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** left, const void* stack, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* entered, const void** left,
                                                           size_t* size);
}

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

constexpr size_t kStack = 64 << 10;
constexpr unsigned kWarp = 32;

struct Fiber {
  const void* stack;  // its lowest address
  size_t size;
  void* fake_stack;  // address sanitizer's
#if defined(EMULATION_ASSEMBLY)
  void* top;  // the stack pointer while another fiber runs
#else
  ucontext_t context;
#endif
};

enum class State { kReady, kWaiting, kEnded };

struct Thread {
  State state;
  Fiber* fiber;
  Scope scope;
  Place place;
  unsigned mask;  // 0 at a barrier of the block
  uint64_t value;
  int source;
  Meeting meeting;
};

// The block that runs. One at a time: shared memory is static.
std::mutex launching;
uint64_t launches;
std::vector<Thread> threads;
std::vector<unsigned> order, group;
unsigned started, current;
size_t living;
void (*body)(void*);
void* context;
char* dynamic;
Fiber scheduler;
Fiber* running;
std::deque<Fiber> fibers;
std::vector<Fiber*> idle;

#if defined(EMULATION_ASSEMBLY)
// Keeps what a function must keep on the stack, and goes on where the other stack was left: a
// fraction of swapcontext's time, which asks the kernel for the signal mask.
extern "C" void rapkernels_emulation_switch(void** from, void* to);
asm(R"(
.text
.local rapkernels_emulation_switch
.type rapkernels_emulation_switch, @function
rapkernels_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rapkernels_emulation_switch, .-rapkernels_emulation_switch
)");
#endif

// Runs `to` until something comes back to `from`.
void change(Fiber& from, Fiber& to, bool for_good = false) {
  const bool sanitized = &__sanitizer_start_switch_fiber != nullptr;
  if (sanitized)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.size);
#if defined(EMULATION_ASSEMBLY)
  rapkernels_emulation_switch(&from.top, to.top);
#else
  swapcontext(&from.context, &to.context);
#endif
  if (sanitized) __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

void enter(unsigned index) {
  current = index;
  threadIdx = {index, 0, 0};
}

void run_next() {
  const unsigned index = order[started++];
  threads[index].state = State::kReady;
  enter(index);
  body(context);
  threads[index].state = State::kEnded;
  --living;
}

// The first frame of a fiber: thread after thread, until one waits. Threads that never wait thus
// cost a call.
void work() {
  if (&__sanitizer_finish_switch_fiber != nullptr)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.size);
  while (started < threads.size()) run_next();
  idle.push_back(running);
  change(*running, scheduler, true);
}

bool same_meeting(const Thread& a, const Thread& b) {
  return a.scope == b.scope && a.mask == b.mask && a.place.name == b.place.name &&
         a.place.file == b.place.file && a.place.line == b.place.line;
}

[[noreturn]] void fail(const char* what) {
  std::fflush(nullptr);
  std::fprintf(stderr, "emulated CUDA: %s (block %u of %u threads); waiting:\n", what, blockIdx.x,
               blockDim.x);
  for (size_t i = 0; i < threads.size(); ++i) {
    const Thread& first = threads[i];
    const auto too = [&](const Thread& t) {
      return t.state == State::kWaiting && same_meeting(t, first);
    };
    if (!too(first) || std::any_of(threads.begin(), threads.begin() + i, too)) continue;
    std::fprintf(stderr, "  %td at %s:%d in %s (mask %x), the first is thread %zu\n",
                 std::count_if(threads.begin(), threads.end(), too), first.place.file,
                 first.place.line, first.place.name, first.mask, i);
  }
  std::abort();
}

Fiber* new_fiber() {
  // Whoever outgrows a stack meets a page that cannot be touched.
  const auto guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, guard + kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) fail("no memory");
  Fiber& fiber = fibers.emplace_back();
  fiber.stack = static_cast<char*>(memory) + guard;
  fiber.size = kStack;
  return &fiber;
}

void start_fiber() {
  if (idle.empty()) idle.push_back(new_fiber());
  running = idle.back();
  idle.pop_back();
  char* stack = static_cast<char*>(const_cast<void*>(running->stack));
#if defined(EMULATION_ASSEMBLY)
  // As the switch leaves it: six registers, where to go on, and no caller.
  auto* top = reinterpret_cast<void**>(stack + running->size) - 8;
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(&work);
  running->top = top;
#else
  getcontext(&running->context);
  running->context.uc_stack.ss_sp = stack;
  running->context.uc_stack.ss_size = running->size;
  makecontext(&running->context, &work, 0);
#endif
  change(scheduler, *running);
}

// Lets those go on that thread `index` waits for, if they all have come.
bool release(unsigned index) {
  const Thread& first = threads[index];
  const bool warp = first.scope == Scope::kWarp;
  const unsigned size = static_cast<unsigned>(threads.size());
  const unsigned begin = warp ? index / kWarp * kWarp : 0;
  const unsigned end = warp ? std::min(begin + kWarp, size) : size;
  Meeting met{};
  unsigned lanes = 0;
  group.clear();
  for (unsigned i = begin; i < end; ++i) {
    const Thread& other = threads[i];
    if (other.state == State::kEnded || (warp && !(first.mask >> (i - begin) & 1))) continue;
    if (other.state != State::kWaiting || !same_meeting(other, first)) return false;
    group.push_back(i);
    met.arrived += 1;
    met.votes += other.value != 0;
    if (!warp) continue;
    lanes |= 1u << (i - begin);
    met.ballot |= unsigned{other.value != 0} << (i - begin);
  }
  for (const unsigned i : group) {
    const int source = threads[i].source;
    met.value = lanes >> source & 1 ? threads[begin + source].value : ~uint64_t{0};
    threads[i].meeting = met;
    threads[i].state = State::kReady;
  }
  return true;
}

bool release_any() {
  bool released = false, whole_block = false;
  for (unsigned i = 0; i < threads.size(); ++i) {
    if (threads[i].state != State::kWaiting) continue;
    // Where one thread must wait for the block, all must.
    if (threads[i].scope == Scope::kBlock && std::exchange(whole_block, true)) continue;
    released |= release(i);
  }
  return released;
}

void run_block() {
  started = 0;
  living = threads.size();
  while (started < threads.size()) start_fiber();
  while (living > 0) {
    if (!release_any()) fail("threads wait for others that never come");
    for (const unsigned i : order) {
      if (threads[i].state != State::kReady) continue;
      enter(i);
      running = threads[i].fiber;
      change(scheduler, *running);
    }
  }
}

// Forward, backward or shuffled.
void arrange(std::vector<unsigned>& indices, size_t size, uint64_t random) {
  indices.resize(size);
  std::iota(indices.begin(), indices.end(), 0u);
  if (random % 3 == 1) std::reverse(indices.begin(), indices.end());
  if (random % 3 != 2) return;
  for (size_t i = size; i > 1; --i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    std::swap(indices[i - 1], indices[(random >> 33) % i]);
  }
}

}  // namespace

Meeting meet(Scope scope, const Place& place, unsigned mask, uint64_t value, int source) {
  Thread& self = threads[current];
  self = {State::kWaiting, running, scope, place, mask, value, source, {}};
  if (scope == Scope::kWarp && !(mask >> lane() & 1)) fail("a thread's mask leaves itself out");
  change(*running, scheduler);
  return self.meeting;
}

char* dynamic_memory() { return dynamic; }

size_t& most_dynamic_memory(const void* kernel) {
  static std::map<const void*, size_t> most;
  static std::mutex reading;
  const std::lock_guard<std::mutex> lock(reading);
  return most.try_emplace(kernel, size_t{48} << 10).first->second;
}

void run(unsigned blocks, unsigned block_size, size_t shared, void (*kernel)(void*),
         void* arguments) {
  const std::lock_guard<std::mutex> lock(launching);
  // Aligned as CUDA does, its bounds those that address sanitizer sees, and full of NaN.
  void* memory = nullptr;
  if (shared > 0 && posix_memalign(&memory, 128, shared) != 0) fail("no memory");
  if (shared > 0) std::memset(memory, 0xff, shared);
  dynamic = static_cast<char*>(memory);
  // Bits of no period that a sequence of launches could share.
  uint64_t random = ++launches * 0x9e3779b97f4a7c15u;
  random = (random ^ (random >> 30)) * 0xbf58476d1ce4e5b9u;
  random ^= random >> 27;
  threads.assign(block_size, Thread{});
  arrange(order, block_size, random >> 32);
  std::vector<unsigned> block_order;
  arrange(block_order, blocks, random & 0xffffffffu);
  body = kernel;
  context = arguments;
  blockDim = dim3(block_size);
  gridDim = dim3(blocks);
  for (const unsigned block : block_order) {
    blockIdx = {block, 0, 0};
    run_block();
  }
  std::free(memory);
}

}  // namespace emulation
