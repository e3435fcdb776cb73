// Pooling: the winner takes all (max), or every input its share of the window (average).
#include <vector>

#include "device.h"
#include "state.h"
#include "targets.h"

namespace rapkernels {
namespace {

constexpr int64_t kDims = 3;

// The shape of a pool whose spatial dimension d has windows(d); one and two dimensions are padded
// with ones in front.
template <typename Dimension>
PoolShape pool_shape(const Tensor& x, const Tensor& relevance, const Dimension& windows) {
  PoolShape shape{x.size(0),
                  targets_of(x, relevance),
                  x.size(1),
                  x.suggest_memory_format() != at::MemoryFormat::Contiguous,
                  {}};
  const int64_t missing = kDims - (x.dim() - 2);
  for (int64_t k = 0; k < kDims; ++k) {
    shape.windows[k] = k < missing ? Windows{1, 1, 1, 1, 0, 1} : windows(k - missing);
  }
  return shape;
}

void check_operands(const char* op, const Tensor& x, const Tensor& relevance, OptionalTensor& psi,
                    OptionalTensor& scale) {
  check_storage(op, "x", x);
  check_dim(op, "x", x, 3, 5);
  check_dim(op, "relevance", relevance, x.dim(), x.dim());
  check_like(op, "relevance", relevance, "x", x);
  TORCH_CHECK(has_targets(x, relevance) && relevance.size(1) == x.size(1), op,
              ": relevance must have the samples and channels of x ", x.sizes(), ", got ",
              relevance.sizes());
  check_per_sample(op, "psi", psi, relevance);
  check_per_sample(op, "scale", scale, relevance);
}

// Output size of one dimension, as torch's pools compute it.
int64_t pooled_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                    int64_t dilation, bool ceil_mode) {
  const int64_t room = input + 2 * padding - dilation * (kernel - 1) - 1;
  const int64_t steps = (room + (ceil_mode ? stride - 1 : 0)) / stride;
  const bool outside = ceil_mode && steps * stride >= input + padding;
  return steps + (outside ? 0 : 1);
}

PoolShape fixed_windows(const char* op, const Tensor& x, const Tensor& relevance,
                        at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                        at::IntArrayRef dilation, bool ceil_mode) {
  const int64_t dims = x.dim() - 2;
  check_list(op, "kernel_size", kernel, dims, 1);
  check_list(op, "stride", stride, dims, 1);
  check_list(op, "padding", padding, dims, 0);
  check_list(op, "dilation", dilation, dims, 1);
  std::vector<int64_t> shape{relevance.size(0), x.size(1)};
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
  return pool_shape(x, relevance, [&](int64_t d) {
    return Windows{x.size(d + 2), relevance.size(d + 2), kernel[d], stride[d], padding[d],
                   dilation[d]};
  });
}

PoolShape adaptive_windows(const char* op, const Tensor& x, const Tensor& relevance) {
  for (int64_t d = 2; d < x.dim(); ++d) {
    TORCH_CHECK(relevance.size(d) > 0, op,
                ": relevance must have at least one position per dimension, got ",
                relevance.sizes());
  }
  return pool_shape(x, relevance, [&](int64_t d) {
    return Windows{x.size(d + 2), relevance.size(d + 2), 0, 0, 0, 1};
  });
}

// How the relevance of a window is handed on.
struct Handing {
  std::optional<Share> share;  // of an average pool; a max pool has none
  double stabilizer;
  bool absorb_zeros;
};

State pool(const Tensor& x, const Tensor& relevance, const OptionalTensor& psi,
           const OptionalTensor& scale, const PoolShape& shape, const Handing& handing) {
  const auto format = x.suggest_memory_format();
  const Tensor in = operand(x, format);
  const Tensor incoming = operand(relevance, format);
  Tensor out = empty_for_targets(in, relevance, format);
  Tensor absorbed = per_sample(relevance, 0);
  RAPKERNELS_DISPATCH(in, "relprop_pool", [&] {
    const scalar_t* from = in.const_data_ptr<scalar_t>();
    const scalar_t* r = incoming.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    double* lost = absorbed.mutable_data_ptr<double>();
    if (handing.share) {
      device::avg_pool(from, r, data_or_null(psi), to, lost, shape, *handing.share,
                       handing.stabilizer);
    } else {
      device::max_pool(from, r, data_or_null(psi), to, lost, shape, handing.absorb_zeros);
    }
  });
  return settle_complete(out, absorbed, scale, x.scalar_type());
}

Handing shared(const char* op, std::string_view rule, double stabilizer) {
  const Share share = parse_share(op, rule);
  check_stabilizer(op, stabilizer);
  return {share, stabilizer, false};
}

Handing to_winners(bool absorb_zeros) { return {std::nullopt, 0, absorb_zeros}; }

State relprop_max_pool(const Tensor& x, const Tensor& relevance, OptionalTensor psi,
                       OptionalTensor scale, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode,
                       bool absorb_zeros) {
  constexpr const char* op = "relprop_max_pool";
  check_operands(op, x, relevance, psi, scale);
  return pool(x, relevance, psi, scale,
              fixed_windows(op, x, relevance, kernel_size, stride, padding, dilation, ceil_mode),
              to_winners(absorb_zeros));
}

State relprop_avg_pool(const Tensor& x, const Tensor& relevance, OptionalTensor psi,
                       OptionalTensor scale, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, bool ceil_mode, std::string_view rule,
                       double stabilizer) {
  constexpr const char* op = "relprop_avg_pool";
  check_operands(op, x, relevance, psi, scale);
  const Handing handing = shared(op, rule, stabilizer);
  const std::vector<int64_t> ones(x.dim() - 2, 1);
  return pool(x, relevance, psi, scale,
              fixed_windows(op, x, relevance, kernel_size, stride, padding, ones, ceil_mode),
              handing);
}

State relprop_adaptive_max_pool(const Tensor& x, const Tensor& relevance, OptionalTensor psi,
                                OptionalTensor scale, bool absorb_zeros) {
  constexpr const char* op = "relprop_adaptive_max_pool";
  check_operands(op, x, relevance, psi, scale);
  return pool(x, relevance, psi, scale, adaptive_windows(op, x, relevance),
              to_winners(absorb_zeros));
}

State relprop_adaptive_avg_pool(const Tensor& x, const Tensor& relevance, OptionalTensor psi,
                                OptionalTensor scale, std::string_view rule, double stabilizer) {
  constexpr const char* op = "relprop_adaptive_avg_pool";
  check_operands(op, x, relevance, psi, scale);
  const Handing handing = shared(op, rule, stabilizer);
  return pool(x, relevance, psi, scale, adaptive_windows(op, x, relevance), handing);
}

}  // namespace

RAPKERNELS_REGISTER(m) {
  m.impl("relprop_max_pool", &relprop_max_pool);
  m.impl("relprop_avg_pool", &relprop_avg_pool);
  m.impl("relprop_adaptive_max_pool", &relprop_adaptive_max_pool);
  m.impl("relprop_adaptive_avg_pool", &relprop_adaptive_avg_pool);
}

}  // namespace rapkernels
