// Memory that CPU ops hand on from one tensor to the next. What malloc gets back from the end of
// its heap goes to the system, and comes from there anew, page by page, for the next layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "checks.h"

namespace rapkernels {

// Of this thread; may be nested. While it is open, the tensors below take the memory that others of
// them have left; closing it gives back what none of them uses.
void open_workspace();
void close_workspace();

// As at::empty and at::empty_like.
Tensor workspace_empty(at::IntArrayRef shape, const at::TensorOptions& options);
Tensor workspace_empty_like(const Tensor& t, std::optional<at::MemoryFormat> format = std::nullopt);

}  // namespace rapkernels
