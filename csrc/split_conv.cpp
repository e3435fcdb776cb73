#include "split_conv.h"

#include "device.h"
#include "targets.h"
#include "workspace.h"
#if !defined(RAPKERNELS_EMULATED)
#include "cpu/split_conv.h"
#endif

namespace rapkernels {

#if defined(RAPKERNELS_EMULATED)

bool has_split_conv(const Tensor&, const Tensor&, const ConvShape&, bool) { return false; }

Tensor split_conv_forward(const Tensor&, const Tensor&, const Tensor&, const ConvShape&) {
  return {};
}

Transposed split_conv_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                               const ConvShape&, bool, const Tensor&) {
  return {};
}

bool has_split_zbox(const Tensor&, const Tensor&, const ConvShape&) { return false; }

Tensor split_conv_sums(const Tensor&, const Tensor&, const Tensor&, const ConvShape&) { return {}; }

Tensor split_conv_positive_transposed(const Tensor&, const Tensor&, const Tensor&,
                                      const ConvShape&) {
  return {};
}

#else

namespace {

// Without the weight's entries: what may run is asked of tensors that have none, too.
cpu::SplitConv shape_of(const Tensor& x, const Tensor& weight, const ConvShape& conv) {
  const auto axis = [&](int64_t d) {
    const int64_t size = x.size(d + 2);
    const int64_t kernel = weight.size(d + 2);
    const int64_t reach = conv.dilation[d] * (kernel - 1) + 1;
    const int64_t results = (size + 2 * conv.padding[d] - reach) / conv.stride[d] + 1;
    return cpu::SplitAxis{size, results, kernel, conv.stride[d], conv.dilation[d], conv.padding[d]};
  };
  return {weight.size(1),
          weight.size(0),
          {axis(0), axis(1)},
          nullptr,
          {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)}};
}

cpu::SplitConv describe(const Tensor& x, const Tensor& weight, const ConvShape& conv) {
  cpu::SplitConv described = shape_of(x, weight, conv);
  described.weight = weight.const_data_ptr<float>();
  return described;
}

bool is_covered(const Tensor& x, const ConvShape& conv) {
  return !runs_cuda_kernels(x) && x.scalar_type() == at::kFloat && x.dim() == 4 &&
         conv.format == at::MemoryFormat::ChannelsLast && conv.groups == 1;
}

}  // namespace

bool has_split_conv(const Tensor& x, const Tensor& weight, const ConvShape& conv, bool bfloat16) {
  return is_covered(x, conv) && cpu::runs_split_conv(shape_of(x, weight, conv), bfloat16);
}

bool has_split_zbox(const Tensor& x, const Tensor& weight, const ConvShape& conv) {
  return is_covered(x, conv) && cpu::runs_split_zbox(shape_of(x, weight, conv));
}

Tensor split_conv_forward(const Tensor& x, const Tensor& weight, const Tensor& z,
                          const ConvShape& conv) {
  Tensor a = workspace_empty_like(z);
  cpu::split_conv_forward(describe(x, weight, conv), x.const_data_ptr<float>(),
                          z.const_data_ptr<float>(), x.size(0), a.mutable_data_ptr<float>());
  return a;
}

Transposed split_conv_backward(const Tensor& positive, const Tensor& negative, const Tensor& weight,
                               const Tensor& x, const ConvShape& conv, bool nonnegative,
                               const Tensor& room) {
  const auto result = [&] { return empty_for_targets(x, positive, conv.format); };
  const bool fits = room.defined() && room.scalar_type() == x.scalar_type() &&
                    room.sizes().slice(1) == x.sizes().slice(1);
  const Transposed out{fits ? room : result(), nonnegative ? Tensor() : result()};
  const auto run = [&](const auto* up, const auto* down) {
    cpu::split_conv_backward(describe(x, weight, conv), up, down, positive.size(0),
                             out.to_positive.mutable_data_ptr<float>(),
                             nonnegative ? nullptr : out.to_negative.mutable_data_ptr<float>());
  };
  if (positive.scalar_type() == at::kBFloat16) {
    run(positive.const_data_ptr<at::BFloat16>(), negative.const_data_ptr<at::BFloat16>());
  } else {
    run(positive.const_data_ptr<float>(), negative.const_data_ptr<float>());
  }
  return out;
}

Tensor split_conv_sums(const Tensor& up, const Tensor& down, const Tensor& weight,
                       const ConvShape& conv) {
  const cpu::SplitConv described = describe(up, weight, conv);
  const auto& axes = described.axes;
  Tensor z = workspace_empty({up.size(0), described.outputs, axes[0].results, axes[1].results},
                             up.options().memory_format(conv.format));
  cpu::split_conv_sums(described, up.const_data_ptr<float>(), down.const_data_ptr<float>(),
                       up.size(0), z.mutable_data_ptr<float>());
  return z;
}

Tensor split_conv_positive_transposed(const Tensor& s, const Tensor& weight, const Tensor& x,
                                      const ConvShape& conv) {
  Tensor out = empty_for_targets(x, s, conv.format);
  cpu::split_conv_positive_transposed(describe(x, weight, conv), s.const_data_ptr<float>(),
                                      s.size(0), out.mutable_data_ptr<float>());
  return out;
}

#endif

}  // namespace rapkernels
