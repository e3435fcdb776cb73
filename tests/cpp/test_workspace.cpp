// Who gets which memory while a workspace is open, and that nothing is handed out twice or lost.
#include "workspace.h"

#include <ATen/ops/empty.h>

#include <memory>
#include <thread>
#include <vector>

#include "check.h"

using namespace rapkernels;

namespace {

constexpr int64_t kMany = 1 << 20;

Tensor made(int64_t size) { return workspace_empty({size}, at::TensorOptions(at::kFloat)); }

void test_memory_is_handed_on() {
  Workspace workspace;
  workspace.open();
  Tensor first = made(kMany);
  const void* memory = first.data_ptr();
  const Tensor beside = made(kMany);
  CHECK(beside.data_ptr() != memory);
  first.reset();
  const Tensor far_smaller = made(kMany / 2);
  CHECK(far_smaller.data_ptr() != memory);
  Tensor smaller = workspace_empty_like(at::empty({3 * kMany / 4}));
  CHECK(smaller.data_ptr() == memory);
  smaller.reset();
  workspace.close();
  CHECK(workspace.unused_bytes() == kMany * sizeof(float));
  workspace.open();
  Tensor again = made(kMany);
  CHECK(again.data_ptr() == memory);
  std::thread([&] { again.reset(); }).join();
  CHECK(made(kMany).data_ptr() == memory);
  workspace.close();
}

void test_tensors_outlive_it() {
  auto workspace = std::make_unique<Workspace>();
  workspace->open();
  const Tensor kept = made(kMany).fill_(3);
  workspace->close();
  workspace.reset();
  const Tensor other = made(kMany).fill_(4);
  CHECK(kept[kMany - 1].item<float>() == 3);
  CHECK(other[0].item<float>() == 4);
}

void test_the_innermost_counts() {
  Workspace outer;
  Workspace inner;
  outer.open();
  inner.open();
  made(kMany);
  inner.close();
  CHECK(inner.unused_bytes() == kMany * sizeof(float));
  CHECK(outer.unused_bytes() == 0);
  made(kMany);
  CHECK(outer.unused_bytes() == kMany * sizeof(float));
  outer.close();
}

void test_threads_share_it() {
  Workspace workspace;
  workspace.open();
  const Tensor here = made(kMany).fill_(2);
  const void* memory = made(kMany).data_ptr();
  std::thread([&] {
    CHECK(made(kMany).data_ptr() != memory);
    workspace.open();
    CHECK(made(kMany).fill_(1).data_ptr() == memory);
    workspace.close();
  }).join();
  CHECK(here[0].item<float>() == 2);
  workspace.close();
}

// More memory is left than may wait: what is dropped is not handed out.
void test_more_is_left_than_waits() {
  Workspace workspace;
  workspace.open();
  std::vector<Tensor> tensors;
  for (int64_t i = 0; i < 8; ++i) tensors.push_back(made(4 * kMany).fill_(1));
  const void* last = tensors.back().data_ptr();
  tensors.clear();
  bool is_found = false;
  for (int64_t i = 0; i < 8; ++i) {
    tensors.push_back(made(4 * kMany).fill_(static_cast<double>(i)));
    is_found = is_found || tensors.back().data_ptr() == last;
  }
  CHECK(is_found);
  for (int64_t i = 0; i < 8; ++i) {
    CHECK(tensors[i][0].item<float>() == static_cast<float>(i));
    CHECK(tensors[i][4 * kMany - 1].item<float>() == static_cast<float>(i));
  }
  const Tensor largest = made(32 * kMany).fill_(2);
  CHECK(largest[32 * kMany - 1].item<float>() == 2);
  workspace.close();
}

void test_layouts() {
  Workspace workspace;
  workspace.open();
  const auto last = at::TensorOptions(at::kDouble).memory_format(at::MemoryFormat::ChannelsLast);
  const Tensor image = workspace_empty({2, 64, 40, 40}, last);
  CHECK(image.is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(workspace_empty_like(image).strides() == image.strides());
  CHECK(workspace_empty_like(image).scalar_type() == at::kDouble);
  CHECK(workspace_empty_like(image.select(1, 3)).sizes() == at::IntArrayRef({2, 40, 40}));
  workspace.close();
}

}  // namespace

int main() {
  test_memory_is_handed_on();
  test_tensors_outlive_it();
  test_the_innermost_counts();
  test_threads_share_it();
  test_more_is_left_than_waits();
  test_layouts();
  return report();
}
