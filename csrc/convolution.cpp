#include "convolution.h"

#include <ATen/Context.h>
#include <ATen/ops/_convolution.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <torch/version.h>

#include <algorithm>

#include "device.h"

namespace rapkernels {
namespace {

bool is_unequal(const ConvShape& conv) {
  const auto positive = [](int64_t p) { return p > 0; };
  return std::any_of(conv.low.begin(), conv.low.end(), positive) ||
         std::any_of(conv.high.begin(), conv.high.end(), positive);
}

bool allows_tf32() {
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 10)
  return at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
#else
  return at::globalContext().allowTF32CuDNN();
#endif
}

// torch's convolution with torch's settings, but for one: the same input gives the same bits.
Tensor convolution(const Tensor& x, const Tensor& weight, const ConvShape& conv, bool transposed,
                   at::IntArrayRef output_padding) {
  const at::Context& context = at::globalContext();
  return at::_convolution(x, weight, std::nullopt, conv.stride, conv.padding, conv.dilation,
                          transposed, output_padding, conv.groups, context.benchmarkCuDNN(),
                          /*deterministic=*/true, context.userEnabledCuDNN(), allows_tf32())
      .contiguous(conv.format);
}

}  // namespace

ConvShape check_convolution(const char* op, const Tensor& x, const Tensor& weight,
                            const Tensor& relevance, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_storage(op, "x", x);
  check_dim(op, "x", x, 3, 5);
  check_dim(op, "weight", weight, x.dim(), x.dim());
  check_like(op, "weight", weight, "x", x);
  check_like(op, "relevance", relevance, "x", x);
  const int64_t dims = x.dim() - 2;
  check_list(op, "stride", stride, dims, 1);
  check_list(op, "padding", padding, 2 * dims, 0);
  check_list(op, "dilation", dilation, dims, 1);
  TORCH_CHECK(groups >= 1 && weight.size(0) % groups == 0, op,
              ": groups must be positive and divide the ", weight.size(0),
              " output channels of weight, got ", groups);
  TORCH_CHECK(x.size(1) == weight.size(1) * groups, op, ": x must have ", weight.size(1) * groups,
              " channels, as weight ", weight.sizes(), " with ", groups, " groups needs, got ",
              x.sizes());

  ConvShape conv{x.suggest_memory_format(), stride.vec(), {}, dilation.vec(), groups, {}, {}};
  std::vector<int64_t> shape{weight.size(0)};
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t low = padding[2 * d];
    const int64_t high = padding[2 * d + 1];
    const int64_t both = std::min(low, high);
    conv.padding.push_back(both);
    conv.low.push_back(low - both);
    conv.high.push_back(high - both);
    const int64_t reach = dilation[d] * (weight.size(d + 2) - 1) + 1;
    const int64_t room = x.size(d + 2) + low + high - reach;
    TORCH_CHECK(room >= 0, op, ": x must be at least as large as the kernel's reach of ", reach,
                " in spatial dimension ", d, " with its padding, got ", x.sizes());
    shape.push_back(room / stride[d] + 1);
  }
  check_targets(op, "relevance", relevance, "x", x, shape);
  return conv;
}

Tensor pad_unequal(const Tensor& x, const ConvShape& conv) {
  if (!is_unequal(conv)) return x;
  std::vector<int64_t> pad;
  for (size_t d = conv.low.size(); d-- > 0;) {
    pad.push_back(conv.low[d]);
    pad.push_back(conv.high[d]);
  }
  return at::constant_pad_nd(x, pad).contiguous(conv.format);
}

Tensor crop_unequal(const Tensor& x, const ConvShape& conv) {
  if (!is_unequal(conv)) return x;
  Tensor inner = x;
  for (size_t d = 0; d < conv.low.size(); ++d) {
    const int64_t dim = static_cast<int64_t>(d) + 2;
    inner = inner.narrow(dim, conv.low[d], x.size(dim) - conv.low[d] - conv.high[d]);
  }
  return inner.contiguous(conv.format);
}

bool is_full_precision(const Tensor& x) {
  if (x.scalar_type() == at::kBFloat16) return false;
  return !(runs_cuda_kernels(x) && x.scalar_type() == at::kFloat && allows_tf32());
}

Tensor convolve(const Tensor& x, const Tensor& weight, const ConvShape& conv) {
  const std::vector<int64_t> none(conv.stride.size(), 0);
  return convolution(x, weight, conv, /*transposed=*/false, none);
}

Tensor convolve_transposed(const Tensor& s, const Tensor& weight, const Tensor& x,
                           const ConvShape& conv) {
  if (runs_cuda_kernels(s)) {
    // Unlike convolution_backward, this can be asked for a deterministic algorithm.
    std::vector<int64_t> rest;
    for (size_t d = 0; d < conv.stride.size(); ++d) {
      const int64_t dim = static_cast<int64_t>(d) + 2;
      const int64_t reach = conv.dilation[d] * (weight.size(dim) - 1) + 1;
      rest.push_back(x.size(dim) + 2 * conv.padding[d] - reach -
                     (s.size(dim) - 1) * conv.stride[d]);
    }
    return convolution(s, weight, conv, /*transposed=*/true, rest);
  }
  const std::vector<int64_t> none(conv.stride.size(), 0);
  // Only its shape is read; with several targets s has more samples than x.
  auto shape = x.sizes().vec();
  shape[0] = s.size(0);
  const Tensor like =
      shape == x.sizes() ? x : at::empty(shape, x.options().memory_format(conv.format));
  const auto gradients = at::convolution_backward(
      s, like, weight, std::nullopt, conv.stride, conv.padding, conv.dilation,
      /*transposed=*/false, none, conv.groups, {true, false, false});
  return std::get<0>(gradients).contiguous(conv.format);
}

}  // namespace rapkernels
