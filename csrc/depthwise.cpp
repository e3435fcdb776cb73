#include "depthwise.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <utility>

#include "device.h"
#include "targets.h"
#include "workspace.h"
#if !defined(RAPKERNELS_EMULATED)
#include "cpu/depthwise.h"
#endif

namespace rapkernels {

#if defined(RAPKERNELS_EMULATED)

bool is_depthwise(const Tensor&, const Tensor&, const ConvShape&) { return false; }

std::pair<Tensor, Tensor> depthwise_sums(const Tensor&, const Tensor&, const ConvShape&) {
  return {};
}

Gated depthwise_contribution(const Tensor&, const Tensor&, const Parts&, const ConvShape&) {
  return {};
}

#else

namespace {

// The weight with channels last, which `filters` keeps alive.
template <typename T>
cpu::Depthwise<T> describe(const Tensor& x, const Tensor& filters, const ConvShape& conv) {
  const auto axis = [&](int64_t d) {
    const int64_t kernel = filters.size(d);
    const int64_t reach = conv.dilation[d] * (kernel - 1) + 1;
    const int64_t size = x.size(d + 2);
    const int64_t results = (size + 2 * conv.padding[d] - reach) / conv.stride[d] + 1;
    return cpu::SplitAxis{size, results, kernel, conv.stride[d], conv.dilation[d], conv.padding[d]};
  };
  return {x.size(1), {axis(0), axis(1)}, filters.const_data_ptr<T>()};
}

Tensor filters_of(const Tensor& weight) {
  return weight.squeeze(1).permute({1, 2, 0}).contiguous();
}

}  // namespace

bool is_depthwise(const Tensor& x, const Tensor& weight, const ConvShape& conv) {
  return !runs_cuda_kernels(x) && x.dim() == 4 && conv.groups > 1 && conv.groups == x.size(1) &&
         weight.size(0) == x.size(1) && conv.format == at::MemoryFormat::ChannelsLast;
}

std::pair<Tensor, Tensor> depthwise_sums(const Tensor& x, const Tensor& weight,
                                         const ConvShape& conv) {
  const Tensor filters = filters_of(weight);
  std::pair<Tensor, Tensor> sums;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_sums", [&] {
    const auto shape = describe<scalar_t>(x, filters, conv);
    const auto sum = [&] {
      return workspace_empty({x.size(0), x.size(1), shape.axes[0].results, shape.axes[1].results},
                             x.options().memory_format(conv.format));
    };
    sums = {sum(), sum()};
    cpu::depthwise_sums(shape, x.const_data_ptr<scalar_t>(), x.size(0),
                        sums.first.mutable_data_ptr<scalar_t>(),
                        sums.second.mutable_data_ptr<scalar_t>());
  });
  return sums;
}

Gated depthwise_contribution(const Tensor& x, const Tensor& weight, const Parts& s,
                             const ConvShape& conv) {
  const Tensor filters = filters_of(weight);
  const Gated out{empty_for_targets(x, s.positive, conv.format), empty_statistics(s.positive)};
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_contribution", [&] {
    cpu::depthwise_contribution(
        describe<scalar_t>(x, filters, conv), x.const_data_ptr<scalar_t>(), x.size(0),
        s.positive.const_data_ptr<scalar_t>(), s.negative.const_data_ptr<scalar_t>(),
        s.positive.size(0), out.values.mutable_data_ptr<scalar_t>(),
        reinterpret_cast<Statistics*>(out.statistics.mutable_data_ptr<double>()));
  });
  return out;
}

#endif

}  // namespace rapkernels
