#include "matrix_product.h"

#include <ATen/Context.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <torch/version.h>

#include "device.h"

namespace rapkernels {
namespace {

// MKL multiplies matrices by AVX2 on processors that are not Intel's; oneDNN, which does torch's
// convolutions, by AVX-512 on all of them.
bool convolutions_are_faster() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool are = at::hasMKL() && at::hasMKLDNN() && __builtin_cpu_supports("avx512f") &&
                          !__builtin_cpu_is("intel");
  return are && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 10)
bool is_exact(at::Float32Op op) {
  const auto precision = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, op);
  return precision == at::Float32Precision::NONE || precision == at::Float32Precision::IEEE;
}

bool convolves_exactly() { return is_exact(at::Float32Op::CONV); }
#else
bool convolves_exactly() { return true; }
#endif

// A convolution lays its weight out anew: that pays over this many rows, and while malloc has the
// memory for it, which asks the system for all that is larger.
constexpr int64_t kFewestRows = 128;
constexpr size_t kLargestWeight = 32 * 1024 * 1024;

bool is_done_by_convolution(const Tensor& rows, const Tensor& weight) {
  if (weight.numel() == 0) return false;
  return rows.is_cpu() && !runs_cuda_kernels(rows) && rows.scalar_type() == at::kFloat &&
         weight.scalar_type() == at::kFloat && rows.numel() / rows.size(-1) >= kFewestRows &&
         weight.nbytes() <= kLargestWeight && convolutions_are_faster() && convolves_exactly();
}

// (*, features) as (1, features, rows, 1), in the same memory where t is dense.
Tensor as_image(const Tensor& t) { return t.reshape({1, -1, 1, t.size(-1)}).permute({0, 3, 1, 2}); }

Tensor as_kernel(const Tensor& weight) {
  return weight.contiguous().unsqueeze(1).unsqueeze(1).permute({0, 3, 1, 2});
}

Tensor from_image(const Tensor& image, const Tensor& like) {
  auto shape = like.sizes().vec();
  shape.back() = image.size(1);
  return image.permute({0, 2, 3, 1}).reshape(shape);
}

}  // namespace

bool multiplies_exactly() {
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 10)
  return is_exact(at::Float32Op::MATMUL);
#else
  return at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::HIGHEST;
#endif
}

Tensor matrix_product(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  if (!is_done_by_convolution(x, weight)) return at::linear(x, weight, bias);
  return from_image(at::conv2d(as_image(x), as_kernel(weight), bias), x);
}

Tensor matrix_product_transposed(const Tensor& s, const Tensor& weight, const Tensor& room) {
  if (is_done_by_convolution(s, weight)) {
    return from_image(at::conv_transpose2d(as_image(s), as_kernel(weight)), s);
  }
  if (!room.defined()) return at::matmul(s, weight);
  Tensor out = room.view({-1, room.size(-1)});
  at::mm_out(out, s.reshape({-1, s.size(-1)}), weight);
  return room;
}

}  // namespace rapkernels
