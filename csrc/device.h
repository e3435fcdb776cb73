// Where the ops meet the devices: one implementation of each op, registered for every device that
// is compiled in, and inside it the kernels of the device that its tensors are on.
#pragma once

#include <ATen/Dispatch.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "kernels.h"

// RAPKERNELS_EMULATED: the CUDA kernels compiled for the host, on CPU tensors, for the tests.
#ifndef RAPKERNELS_NAMESPACE
#define RAPKERNELS_NAMESPACE rapkernels
#endif

namespace rapkernels {

inline bool runs_cuda_kernels([[maybe_unused]] const at::Tensor& t) {
#if defined(RAPKERNELS_EMULATED)
  return true;
#elif defined(RAPKERNELS_WITH_CUDA)
  return t.is_cuda();
#else
  return false;
#endif
}

}  // namespace rapkernels

// Runs a lambda in which `device` is the namespace of the kernels for TENSOR's device and
// `scalar_t` its working type; the current device is TENSOR's. DISPATCH_ACCUMULATED: float and
// double only.
#define RAPKERNELS_DISPATCH(TENSOR, NAME, ...)                                       \
  RAPKERNELS_ON_DEVICE(                                                              \
      TENSOR, AT_DISPATCH_FLOATING_TYPES((TENSOR).scalar_type(), NAME, __VA_ARGS__), \
      AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, (TENSOR).scalar_type(), NAME, __VA_ARGS__))
#define RAPKERNELS_DISPATCH_ACCUMULATED(TENSOR, NAME, ...)                                    \
  RAPKERNELS_ON_DEVICE(TENSOR,                                                                \
                       AT_DISPATCH_FLOATING_TYPES((TENSOR).scalar_type(), NAME, __VA_ARGS__), \
                       AT_DISPATCH_FLOATING_TYPES((TENSOR).scalar_type(), NAME, __VA_ARGS__))

#if defined(RAPKERNELS_EMULATED)
#define RAPKERNELS_ON_DEVICE(TENSOR, ON_CPU, ON_CUDA) \
  [&] {                                               \
    namespace device = ::rapkernels::cuda;            \
    ON_CUDA;                                          \
  }()
#elif defined(RAPKERNELS_WITH_CUDA)
#define RAPKERNELS_ON_DEVICE(TENSOR, ON_CPU, ON_CUDA) \
  [&] {                                               \
    const c10::DeviceGuard guard((TENSOR).device());  \
    if ((TENSOR).is_cuda()) {                         \
      namespace device = ::rapkernels::cuda;          \
      ON_CUDA;                                        \
    } else {                                          \
      namespace device = ::rapkernels::cpu;           \
      ON_CPU;                                         \
    }                                                 \
  }()
#else
#define RAPKERNELS_ON_DEVICE(TENSOR, ON_CPU, ON_CUDA) \
  [&] {                                               \
    namespace device = ::rapkernels::cpu;             \
    ON_CPU;                                           \
  }()
#endif

// Registers implementations for every device: RAPKERNELS_REGISTER(m) { m.impl("name", &function); }
#define RAPKERNELS_LIBRARY(LIBRARY, M) TORCH_LIBRARY(LIBRARY, M)
#define RAPKERNELS_LIBRARY_IMPL(LIBRARY, KEY, M) TORCH_LIBRARY_IMPL(LIBRARY, KEY, M)
#if defined(RAPKERNELS_WITH_CUDA) && !defined(RAPKERNELS_EMULATED)
#define RAPKERNELS_REGISTER_CUDA \
  RAPKERNELS_LIBRARY_IMPL(RAPKERNELS_NAMESPACE, CUDA, m) { register_ops(m); }
#else
#define RAPKERNELS_REGISTER_CUDA
#endif
#define RAPKERNELS_REGISTER(M)                                               \
  static void register_ops(torch::Library& M);                               \
  RAPKERNELS_LIBRARY_IMPL(RAPKERNELS_NAMESPACE, CPU, m) { register_ops(m); } \
  RAPKERNELS_REGISTER_CUDA                                                   \
  static void register_ops(torch::Library& M)

// The same for functions that only look at shapes, dtypes and devices, so that tensors of any kind
// will do.
#define RAPKERNELS_REGISTER_FOR_ALL(M) \
  RAPKERNELS_LIBRARY_IMPL(RAPKERNELS_NAMESPACE, CompositeImplicitAutograd, M)
