// Memory that CPU ops hand on from one tensor to the next, and from one call to the next. What
// malloc gets back from the end of its heap goes to the system, and comes from there anew, page by
// page, for the next layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>

#include "checks.h"

namespace rapkernels {

class Pool;

// While it is open in a thread, the tensors below that are made there take memory that others of
// them have left. What waits unused stays until the workspace dies. Several threads may have it
// open; of nested ones the innermost counts.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void open();
  void close();
  size_t unused_bytes() const;

 private:
  std::shared_ptr<Pool> pool_;
};

// As at::empty and at::empty_like.
Tensor workspace_empty(at::IntArrayRef shape, const at::TensorOptions& options);
Tensor workspace_empty_like(const Tensor& t, std::optional<at::MemoryFormat> format = std::nullopt);

}  // namespace rapkernels
