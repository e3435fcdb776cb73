#include "workspace.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace rapkernels {
namespace {

// Bytes of a tensor from which malloc may have to ask the system.
constexpr size_t kSmallest = 128 * 1024;
// A tensor takes memory of at most so many times its size.
constexpr double kLargestFit = 1.5;
// Bytes that wait unused between calls; within one, as many as its largest tensor has, which is
// what relevance of many targets is handed on in.
constexpr size_t kMostUnused = 64 * 1024 * 1024;
// Bytes from which memory comes from the system each time, where huge pages spare most of the
// faults; so many bytes are one of them.
constexpr size_t kHuge = 32 * 1024 * 1024;
constexpr size_t kHugePage = 2 * 1024 * 1024;

void* allocate(size_t bytes) {
#if defined(__linux__)
  void* data = nullptr;
  if (bytes >= kHuge && posix_memalign(&data, kHugePage, bytes) == 0) {
    // Advice that may be ignored.
    madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    return data;
  }
#endif
  return c10::alloc_cpu(bytes);
}

}  // namespace

// Tensors may be freed by any thread, and after the workspace has died.
class Pool {
 public:
  ~Pool() { drop_all(); }

  // At least `bytes`, and how many there are.
  std::pair<void*, size_t> take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = unused_.lower_bound(bytes);
    if (found != unused_.end() &&
        static_cast<double>(found->first) <= kLargestFit * static_cast<double>(bytes)) {
      const auto [size, data] = *found;
      remove(found);
      return {data, size};
    }
    most_unused_ = std::max(most_unused_, bytes);
    make_room(bytes);
    return {allocate(bytes), bytes};
  }

  void give_back(void* data, size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_retired_ || size > most_unused_) {
      c10::free_cpu(data);
      return;
    }
    make_room(size);
    unused_.emplace(size, data);
    unused_bytes_ += size;
  }

  void open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++open_;
  }

  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--open_ > 0) return;
    most_unused_ = kMostUnused;
    make_room(0);
  }

  void retire() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_retired_ = true;
    drop_all();
  }

  size_t unused_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return unused_bytes_;
  }

 private:
  using Blocks = std::multimap<size_t, void*>;  // by size

  // Relevance goes towards larger images: what is small has had its turn.
  void make_room(size_t bytes) {
    while (!unused_.empty() && unused_bytes_ + bytes > most_unused_) drop(unused_.begin());
  }

  void remove(Blocks::iterator block) {
    unused_bytes_ -= block->first;
    unused_.erase(block);
  }

  void drop(Blocks::iterator block) {
    c10::free_cpu(block->second);
    remove(block);
  }

  void drop_all() {
    while (!unused_.empty()) drop(unused_.begin());
  }

  mutable std::mutex mutex_;
  Blocks unused_;
  size_t unused_bytes_ = 0;
  size_t most_unused_ = kMostUnused;
  int64_t open_ = 0;
  bool is_retired_ = false;
};

namespace {

// Of this thread, the innermost last.
thread_local std::vector<std::shared_ptr<Pool>> open_pools;

struct Block {
  std::shared_ptr<Pool> pool;
  void* data;
  size_t size;
};

void release(void* context) {
  const std::unique_ptr<Block> block(static_cast<Block*>(context));
  c10::profiledCPUMemoryReporter().Delete(block->data);
  block->pool->give_back(block->data, block->size);
}

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (open_pools.empty() || bytes < kSmallest) return c10::GetCPUAllocator()->allocate(bytes);
    const auto [data, size] = open_pools.back()->take(bytes);
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, new Block{open_pools.back(), data, size}, &release, at::kCPU};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

Allocator allocator;

}  // namespace

Workspace::Workspace() : pool_(std::make_shared<Pool>()) {}
Workspace::~Workspace() { pool_->retire(); }

void Workspace::open() {
  pool_->open();
  open_pools.push_back(pool_);
}

void Workspace::close() {
  open_pools.pop_back();
  pool_->close();
}

size_t Workspace::unused_bytes() const { return pool_->unused_bytes(); }

Tensor workspace_empty(at::IntArrayRef shape, const at::TensorOptions& options) {
  if (open_pools.empty() || !options.device().is_cpu()) return at::empty(shape, options);
  return at::detail::empty_generic(shape, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   options.dtype().toScalarType(), options.memory_format_opt());
}

Tensor workspace_empty_like(const Tensor& t, std::optional<at::MemoryFormat> format) {
  if (format) return workspace_empty(t.sizes(), t.options().memory_format(*format));
  if (open_pools.empty() || !t.is_cpu() || !t.is_non_overlapping_and_dense()) {
    return at::empty_like(t);
  }
  return at::detail::empty_strided_generic(t.sizes(), t.strides(), &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::CPU),
                                           t.scalar_type());
}

}  // namespace rapkernels
