// Sharing Ratio Decomposition: the relevance of a position, a scalar, is handed on along the
// direction of its vector. The convolutions and matrix products are ATen's; what stands around them
// is fused: norms, sums and G in one pass, the contribution and its statistics in another.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>

#include "convolution.h"
#include "device.h"
#include "matrix_product.h"
#include "state.h"
#include "targets.h"
#include "workspace.h"

namespace rapkernels {
namespace {

constexpr auto kDense = at::MemoryFormat::Contiguous;

VectorShape vector_shape(const Tensor& v, const Tensor& relevance, at::MemoryFormat format) {
  const int64_t columns = v.size(0) * v.size(1);
  return {v.size(0), targets_of(v, relevance), v.size(1), columns ? v.numel() / columns : 0,
          format != kDense};
}

// The relevance of vectors, made ready to be sent back through the weights.
struct Shared {
  Tensor gradient;  // G = v R / ||v||^2
  Tensor share;     // (T N, positions) float64: of the bias, for each tap; undefined without bias
  Tensor absorbed;
};

Shared share(const Tensor& z, const OptionalTensor& bias, const OptionalTensor& taps,
             const Tensor& relevance, const OptionalTensor& psi, const VectorShape& shape) {
  Shared out{workspace_empty_like(relevance), {}, per_sample(relevance, 0)};
  if (bias) {
    out.share = at::empty({relevance.size(0), shape.positions}, z.options().dtype(at::kDouble));
  }
  RAPKERNELS_DISPATCH(z, "sharing_quotient", [&] {
    device::sharing_quotient(z.const_data_ptr<scalar_t>(),
                             bias ? bias->const_data_ptr<scalar_t>() : nullptr, data_or_null(taps),
                             relevance.const_data_ptr<scalar_t>(), data_or_null(psi),
                             out.gradient.mutable_data_ptr<scalar_t>(),
                             bias ? out.share.mutable_data_ptr<double>() : nullptr,
                             out.absorbed.mutable_data_ptr<double>(), shape);
  });
  return out;
}

// x * gradient + share / channels, written into the memory of `gradient`.
State finish(const Tensor& x, const OptionalTensor& share, const Tensor& gradient,
             const Tensor& absorbed, const OptionalTensor& scale, const VectorShape& shape,
             at::ScalarType storage) {
  OptionalTensor each;
  if (share) each = (*share / shape.channels).contiguous();
  const Tensor statistics = empty_statistics(gradient);
  RAPKERNELS_DISPATCH(x, "sharing_contribution", [&] {
    device::sharing_contribution(
        x.const_data_ptr<scalar_t>(), data_or_null(each), gradient.mutable_data_ptr<scalar_t>(),
        reinterpret_cast<Statistics*>(statistics.mutable_data_ptr<double>()), shape);
  });
  State state = settle(gradient, statistics, std::nullopt, scale, storage);
  std::get<3>(state) = scale ? absorbed * *scale : absorbed;
  return state;
}

// Nothing comes in or nothing can take it.
State nothing(const Tensor& x, const Tensor& relevance, const OptionalTensor& scale,
              at::MemoryFormat format) {
  return {empty_for_targets(x, relevance, format).zero_(), per_sample(relevance, 0),
          scale ? scale->clone() : per_sample(relevance, 1), per_sample(relevance, 0)};
}

void check_bias(const char* op, const OptionalTensor& bias, const Tensor& weight, const Tensor& x) {
  if (!bias) return;
  check_like(op, "bias", *bias, "x", x);
  check_shape(op, "bias", *bias, {weight.size(0)});
}

OptionalTensor bias_operand(const OptionalTensor& bias) {
  return bias ? OptionalTensor(operand(*bias, kDense)) : std::nullopt;
}

State share_squares(const Tensor& v, const Tensor& relevance, OptionalTensor psi,
                    OptionalTensor scale) {
  constexpr const char* op = "share_squares";
  check_storage(op, "v", v);
  TORCH_CHECK(v.dim() >= 2, op, ": v must have at least 2 dimensions (N, C, ...), got ", v.dim());
  check_like(op, "relevance", relevance, "v", v);
  check_targets(op, "relevance", relevance, "v", v, v.sizes().slice(1));
  check_per_sample(op, "psi", psi, relevance);
  check_per_sample(op, "scale", scale, relevance);
  const auto format = v.suggest_memory_format();
  if (v.numel() == 0) return nothing(v, relevance, scale, format);
  const Tensor in = operand(v, format);
  const Tensor incoming = operand(relevance, format);
  const Tensor out = empty_for_targets(in, relevance, format);
  const Tensor absorbed = per_sample(relevance, 0);
  RAPKERNELS_DISPATCH(in, op, [&] {
    device::share_squares(in.const_data_ptr<scalar_t>(), incoming.const_data_ptr<scalar_t>(),
                          data_or_null(psi), out.mutable_data_ptr<scalar_t>(),
                          absorbed.mutable_data_ptr<double>(), vector_shape(in, incoming, format));
  });
  return settle_complete(out, absorbed, scale, v.scalar_type());
}

// A convolution of one channel by ones, in float64: it counts the taps inside of the input, and its
// adjoint sends to each of them.
struct Taps {
  ConvShape conv;
  Tensor kernel;
  Tensor input;  // one sample, padded as the convolution needs it

  Taps(const Tensor& x, const Tensor& weight, const ConvShape& of_layer) : conv(of_layer) {
    conv.groups = 1;
    const auto ones = [&](const Tensor& like) {
      auto shape = like.sizes().vec();
      shape[0] = shape[1] = 1;
      return at::ones(shape, x.options().dtype(at::kDouble));
    };
    kernel = ones(weight);
    input = pad_unequal(ones(x), conv);
  }

  Tensor count() const { return convolve(input, kernel, conv); }

  // (T N, positions of the output) -> (T N, 1, *size).
  Tensor send(const Tensor& share, const Tensor& relevance) const {
    auto shape = relevance.sizes().vec();
    shape[1] = 1;
    const Tensor s = share.view(shape);
    return crop_unequal(
        convolve_transposed(s, kernel, empty_for_targets(input, relevance, conv.format), conv),
        conv);
  }
};

State relprop_sharing_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& z, const Tensor& relevance, OptionalTensor psi,
                           OptionalTensor scale, at::IntArrayRef stride, at::IntArrayRef padding,
                           at::IntArrayRef dilation, int64_t groups) {
  constexpr const char* op = "relprop_sharing_conv";
  const ConvShape conv =
      check_convolution(op, x, weight, relevance, stride, padding, dilation, groups);
  check_bias(op, bias, weight, x);
  if (z) {
    check_like(op, "z", *z, "x", x);
    auto shape = relevance.sizes().vec();
    shape[0] = x.size(0);
    check_shape(op, "z", *z, shape);
  }
  check_per_sample(op, "psi", psi, relevance);
  check_per_sample(op, "scale", scale, relevance);
  const auto format = conv.format;
  if (x.numel() == 0 || relevance.numel() == 0) return nothing(x, relevance, scale, format);

  const Tensor original = operand(x, format);
  const Tensor in = pad_unequal(original, conv);
  const Tensor w = operand(weight, format);
  const Tensor incoming = operand(relevance, format);
  // Not z rounded to a narrow storage type: mu sums to 1 where v is what the messages add up to.
  const bool known = z && x.scalar_type() == in.scalar_type();
  const Tensor forward = known ? operand(*z, format) : convolve(in, w, conv);

  std::optional<Taps> taps;
  if (bias) taps.emplace(original, w, conv);
  const Shared s =
      share(forward, bias_operand(bias), taps ? OptionalTensor(taps->count()) : std::nullopt,
            incoming, psi, vector_shape(forward, incoming, format));
  const Tensor like = empty_for_targets(in, incoming, format);
  const Tensor gradient = crop_unequal(convolve_transposed(s.gradient, w, like, conv), conv);
  return finish(original, taps ? OptionalTensor(taps->send(s.share, incoming)) : std::nullopt,
                gradient, s.absorbed, scale, vector_shape(original, incoming, format),
                x.scalar_type());
}

State relprop_sharing_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                             const Tensor& relevance, OptionalTensor psi, OptionalTensor scale) {
  constexpr const char* op = "relprop_sharing_linear";
  check_linear(op, x, weight, relevance);
  check_bias(op, bias, weight, x);
  check_per_sample(op, "psi", psi, relevance);
  check_per_sample(op, "scale", scale, relevance);
  if (x.numel() == 0 || relevance.numel() == 0) return nothing(x, relevance, scale, kDense);

  const Tensor in = operand(x, kDense);
  const Tensor w = operand(weight, kDense);
  const Tensor incoming = operand(relevance, kDense);
  const int64_t rows = in.numel() / in.size(0) / in.size(-1);
  const auto shape = [&](int64_t channels) {
    return VectorShape{in.size(0), targets_of(in, incoming), channels, rows, true};
  };
  const Shared s = share(matrix_product(in, w), bias_operand(bias), std::nullopt, incoming, psi,
                         shape(w.size(0)));
  const Tensor gradient = matrix_product_transposed(s.gradient, w);
  return finish(in, bias ? OptionalTensor(s.share) : std::nullopt, gradient, s.absorbed, scale,
                shape(w.size(1)), x.scalar_type());
}

}  // namespace

RAPKERNELS_REGISTER(m) {
  m.impl("share_squares", &share_squares);
  m.impl("relprop_sharing_conv", &relprop_sharing_conv);
  m.impl("relprop_sharing_linear", &relprop_sharing_linear);
}

}  // namespace rapkernels
