// Pooling: the winner takes all (max), or every input its share of the window (average).
#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

#include "state.h"

namespace rapkernels {
namespace {

// The windows of every spatial dimension; one and two dimensions are padded with ones in front.
struct Geometry {
  std::vector<int64_t> begin[3];
  std::vector<int64_t> end[3];
  PoolShape shape;
};

constexpr int64_t kDims = 3;

template <typename Range>
Geometry geometry(const Tensor& x, const Tensor& relevance, at::IntArrayRef step, bool last,
                  const Range& range) {
  Geometry g;
  g.shape.samples = x.size(0);
  g.shape.channels = x.size(1);
  g.shape.channels_last = last;
  const int64_t dims = x.dim() - 2;
  for (int64_t k = 0; k < kDims; ++k) {
    const int64_t d = k - (kDims - dims);
    const int64_t inputs = d < 0 ? 1 : x.size(d + 2);
    const int64_t outputs = d < 0 ? 1 : relevance.size(d + 2);
    for (int64_t o = 0; o < outputs; ++o) {
      const std::pair<int64_t, int64_t> window =
          d < 0 ? std::make_pair(int64_t{0}, int64_t{1}) : range(d, o, inputs, outputs);
      g.begin[k].push_back(window.first);
      g.end[k].push_back(window.second);
    }
    g.shape.windows[k] = {nullptr, nullptr, d < 0 || step.empty() ? 1 : step[d], inputs, outputs};
  }
  return g;
}

void check_operands(const char* op, const Tensor& x, const Tensor& relevance, OptionalTensor& psi,
                    OptionalTensor& scale) {
  check_storage(op, "x", x);
  check_dim(op, "x", x, 3, 5);
  check_dim(op, "relevance", relevance, x.dim(), x.dim());
  check_like(op, "relevance", relevance, "x", x);
  TORCH_CHECK(relevance.size(0) == x.size(0) && relevance.size(1) == x.size(1), op,
              ": relevance must have the samples and channels of x ", x.sizes(), ", got ",
              relevance.sizes());
  check_per_sample(op, "psi", psi, x);
  check_per_sample(op, "scale", scale, x);
}

// Output size of one dimension, as torch's pools compute it.
int64_t pooled_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                    int64_t dilation, bool ceil_mode) {
  const int64_t room = input + 2 * padding - dilation * (kernel - 1) - 1;
  const int64_t steps = (room + (ceil_mode ? stride - 1 : 0)) / stride;
  const bool outside = ceil_mode && steps * stride >= input + padding;
  return steps + (outside ? 0 : 1);
}

// Windows of fixed size, clipped to the input; a dilated window starts on its own grid.
Geometry fixed_windows(const char* op, const Tensor& x, const Tensor& relevance,
                       at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                       at::IntArrayRef dilation, bool ceil_mode, bool last) {
  const int64_t dims = x.dim() - 2;
  check_list(op, "kernel_size", kernel, dims, 1);
  check_list(op, "stride", stride, dims, 1);
  check_list(op, "padding", padding, dims, 0);
  check_list(op, "dilation", dilation, dims, 1);
  std::vector<int64_t> shape{x.size(0), x.size(1)};
  for (int64_t d = 0; d < dims; ++d) {
    TORCH_CHECK(2 * padding[d] <= kernel[d], op, ": padding must be at most half of kernel_size ",
                kernel, ", got ", padding);
    const int64_t reach = dilation[d] * (kernel[d] - 1) + 1;
    TORCH_CHECK(x.size(d + 2) + 2 * padding[d] >= reach, op,
                ": x must be at least as large as the window's reach of ", reach,
                " in spatial dimension ", d, " with its padding, got ", x.sizes());
    shape.push_back(
        pooled_size(x.size(d + 2), kernel[d], stride[d], padding[d], dilation[d], ceil_mode));
  }
  check_shape(op, "relevance", relevance, shape);
  return geometry(x, relevance, dilation, last, [&](int64_t d, int64_t o, int64_t inputs, int64_t) {
    int64_t begin = o * stride[d] - padding[d];
    const int64_t end = begin + dilation[d] * (kernel[d] - 1) + 1;
    if (begin < 0) begin += (-begin + dilation[d] - 1) / dilation[d] * dilation[d];
    return std::make_pair(begin, std::min(end, inputs));
  });
}

Geometry adaptive_windows(const char* op, const Tensor& x, const Tensor& relevance, bool last) {
  for (int64_t d = 2; d < x.dim(); ++d) {
    TORCH_CHECK(relevance.size(d) > 0, op,
                ": relevance must have at least one position per dimension, got ",
                relevance.sizes());
  }
  return geometry(x, relevance, {}, last, [](int64_t, int64_t o, int64_t inputs, int64_t outputs) {
    return std::make_pair(o * inputs / outputs, ((o + 1) * inputs + outputs - 1) / outputs);
  });
}

bool is_channels_last(const Tensor& x) {
  return x.suggest_memory_format() != at::MemoryFormat::Contiguous;
}

State pool(const Tensor& x, const Tensor& relevance, const OptionalTensor& psi,
           const OptionalTensor& scale, Geometry g, std::optional<Share> share) {
  for (int64_t k = 0; k < kDims; ++k) {
    g.shape.windows[k].begin = g.begin[k].data();
    g.shape.windows[k].end = g.end[k].data();
  }
  const auto format = x.suggest_memory_format();
  const Tensor in = operand(x, format);
  const Tensor incoming = operand(relevance, format);
  Tensor out = at::empty_like(in);
  Tensor absorbed = per_sample(x, 0);
  AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), "relprop_pool", [&] {
    const scalar_t* from = in.const_data_ptr<scalar_t>();
    const scalar_t* r = incoming.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    double* lost = absorbed.mutable_data_ptr<double>();
    if (share) {
      cpu::avg_pool(from, r, data_or_null(psi), to, lost, g.shape, *share);
    } else {
      cpu::max_pool(from, r, data_or_null(psi), to, lost, g.shape);
    }
  });
  return settle_complete(out, absorbed, scale, x.scalar_type());
}

State relprop_max_pool(const Tensor& x, const Tensor& relevance, OptionalTensor psi,
                       OptionalTensor scale, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  constexpr const char* op = "relprop_max_pool";
  check_operands(op, x, relevance, psi, scale);
  return pool(x, relevance, psi, scale,
              fixed_windows(op, x, relevance, kernel_size, stride, padding, dilation, ceil_mode,
                            is_channels_last(x)),
              std::nullopt);
}

State relprop_avg_pool(const Tensor& x, const Tensor& relevance, OptionalTensor psi,
                       OptionalTensor scale, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, bool ceil_mode, std::string_view rule) {
  constexpr const char* op = "relprop_avg_pool";
  check_operands(op, x, relevance, psi, scale);
  const Share share = parse_share(op, rule);
  const std::vector<int64_t> ones(x.dim() - 2, 1);
  return pool(x, relevance, psi, scale,
              fixed_windows(op, x, relevance, kernel_size, stride, padding, ones, ceil_mode,
                            is_channels_last(x)),
              share);
}

State relprop_adaptive_max_pool(const Tensor& x, const Tensor& relevance, OptionalTensor psi,
                                OptionalTensor scale) {
  constexpr const char* op = "relprop_adaptive_max_pool";
  check_operands(op, x, relevance, psi, scale);
  return pool(x, relevance, psi, scale, adaptive_windows(op, x, relevance, is_channels_last(x)),
              std::nullopt);
}

State relprop_adaptive_avg_pool(const Tensor& x, const Tensor& relevance, OptionalTensor psi,
                                OptionalTensor scale, std::string_view rule) {
  constexpr const char* op = "relprop_adaptive_avg_pool";
  check_operands(op, x, relevance, psi, scale);
  const Share share = parse_share(op, rule);
  return pool(x, relevance, psi, scale, adaptive_windows(op, x, relevance, is_channels_last(x)),
              share);
}

}  // namespace

TORCH_LIBRARY_IMPL(rapkernels, CPU, m) {
  m.impl("relprop_max_pool", &relprop_max_pool);
  m.impl("relprop_avg_pool", &relprop_avg_pool);
  m.impl("relprop_adaptive_max_pool", &relprop_adaptive_max_pool);
  m.impl("relprop_adaptive_avg_pool", &relprop_adaptive_avg_pool);
}

}  // namespace rapkernels
