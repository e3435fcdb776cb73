#include "fused_conv.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>
#include <type_traits>
#include <vector>

#include "device.h"
#include "targets.h"
#include "unsplit.h"
#if defined(RAPKERNELS_WITH_CUDA)
#include "cuda/launch.h"
#include "cuda/split_conv.h"
#endif

namespace rapkernels {

FusedConv fused_conv_asked_for() {
  const char* found = std::getenv("RAPKERNELS_FUSED_CONV");
  const std::string_view asked(found == nullptr ? "0" : found);
  TORCH_CHECK(asked == "0" || asked == "1" || asked == "auto",
              "RAPKERNELS_FUSED_CONV must be 0, 1 or auto, got '", asked, "'");
  return asked == "1" ? FusedConv::kOn : asked == "auto" ? FusedConv::kAuto : FusedConv::kOff;
}

#if defined(RAPKERNELS_WITH_CUDA)

namespace {

// Channels-last in memory; where there is one position, every dense layout is.
bool is_channels_last(const Tensor& t) { return t.is_contiguous(at::MemoryFormat::ChannelsLast); }

cuda::SplitConv describe(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                         const ConvShape& conv) {
  const auto axis = [&](int64_t d) {
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    return cuda::SplitAxis{narrow(x.size(d + 2)),      narrow(relevance.size(d + 2)),
                           narrow(weight.size(d + 2)), narrow(conv.stride[d]),
                           narrow(conv.dilation[d]),   narrow(conv.padding[d])};
  };
  return {x.size(0),
          targets_of(x, relevance),
          static_cast<int32_t>(conv.groups),
          static_cast<int32_t>(weight.size(1)),
          static_cast<int32_t>(weight.size(0) / conv.groups),
          {axis(0), axis(1)}};
}

// Values of the half types are exact in TF32; S of float16 is beyond its range.
cuda::Product product_of(const Tensor& x, at::ScalarType storage, const cuda::SplitConv& conv) {
  if (x.scalar_type() == at::kBFloat16) return cuda::Product::kBFloat16;
  if (storage == at::kFloat && is_full_precision(x)) return cuda::Product::k3xTF32;
  const bool half = storage == at::kHalf && cuda::runs_split_conv(conv, sizeof(at::Half));
  return half ? cuda::Product::kFloat16 : cuda::Product::kTF32;
}

// What the time of a step depends on.
using Kind = std::vector<int64_t>;

Kind kind_of(const Tensor& x, const Tensor& weight, const Tensor& relevance, const ConvShape& shape,
             bool nonnegative, at::ScalarType storage) {
  const cuda::SplitConv conv = describe(x, weight, relevance, shape);
  const cuda::Product product = product_of(x, storage, conv);
  Kind kind{x.device().index(), static_cast<int64_t>(product),
            nonnegative,        conv.samples,
            conv.targets,       conv.groups,
            conv.inputs,        conv.outputs};
  for (const cuda::SplitAxis& axis : conv.axes) {
    kind.insert(kind.end(),
                {axis.size, axis.results, axis.kernel, axis.stride, axis.dilation, axis.padding});
  }
  return kind;
}

// Whether the fused step was faster, of each kind that was measured.
class Verdicts {
 public:
  std::optional<bool> find(const Kind& kind) {
    const std::lock_guard<std::mutex> lock(reading_);
    const auto found = known_.find(kind);
    return found == known_.end() ? std::nullopt : std::optional<bool>(found->second);
  }

  // Of threads that measured at the same time the first is right for all.
  bool add(const Kind& kind, bool faster) {
    const std::lock_guard<std::mutex> lock(reading_);
    return known_.emplace(kind, faster).first->second;
  }

 private:
  std::mutex reading_;
  std::map<Kind, bool> known_;
};

Verdicts& verdicts() {
  static Verdicts all;
  return all;
}

// The least of some runs, after one that may have to choose algorithms.
double least_seconds(const std::function<void()>& step) {
  constexpr int kRuns = 3;
  step();
  double least = cuda::seconds_of(step);
  for (int i = 1; i < kRuns; ++i) least = std::min(least, cuda::seconds_of(step));
  return least;
}

}  // namespace

bool has_fused_conv(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                    const ConvShape& conv, const Rule& rule) {
  if (!runs_cuda_kernels(x) || is_unsplit(rule) || x.dim() != 4) return false;
  if (fused_conv_asked_for() == FusedConv::kOff) return false;
  const at::ScalarType type = x.scalar_type();
  if (type != at::kFloat && type != at::kBFloat16) return false;
  if (weight.scalar_type() != type || relevance.scalar_type() != type) return false;
  if (!is_channels_last(x) || !is_channels_last(weight) || !is_channels_last(relevance)) {
    return false;
  }
  const c10::DeviceGuard guard(x.device());
  return cuda::has_tensor_cores() &&
         cuda::runs_split_conv(describe(x, weight, relevance, conv), x.element_size());
}

std::optional<bool> was_fused_conv_faster(const Tensor& x, const Tensor& weight,
                                          const Tensor& relevance, const ConvShape& conv,
                                          bool nonnegative, at::ScalarType storage) {
  return verdicts().find(kind_of(x, weight, relevance, conv, nonnegative, storage));
}

bool is_fused_conv_faster(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                          const ConvShape& conv, bool nonnegative, at::ScalarType storage,
                          const std::function<void()>& fused,
                          const std::function<void()>& library) {
  const Kind kind = kind_of(x, weight, relevance, conv, nonnegative, storage);
  if (const auto known = verdicts().find(kind)) return *known;
  const c10::DeviceGuard guard(x.device());
  if (cuda::is_capturing()) return false;
  return verdicts().add(kind, least_seconds(fused) < least_seconds(library));
}

Gated fused_conv(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                 const OptionalTensor& psi, const Outputs& outputs, const ConvShape& conv,
                 bool nonnegative, at::ScalarType storage, Tensor& total) {
  const cuda::SplitConv described = describe(x, weight, relevance, conv);
  const c10::DeviceGuard guard(x.device());
  auto shape = relevance.sizes().vec();
  shape.insert(shape.begin(), 2);
  const Tensor parts = at::empty(shape, relevance.options());
  total = per_sample(relevance);
  const Gated out{empty_for_targets(x, relevance, conv.format), empty_statistics(relevance)};
  auto* const statistics = reinterpret_cast<Statistics*>(out.statistics.mutable_data_ptr<double>());
  const auto quotient = [&](cuda::Product product, const auto* of_x, const auto* of_weight,
                            auto* to) {
    using V = std::decay_t<decltype(*to)>;
    cuda::split_conv_quotient(described, product, of_x, of_weight, relevance.const_data_ptr<V>(),
                              data_or_null(psi),
                              outputs.bias ? outputs.bias->const_data_ptr<V>() : nullptr, to,
                              total.mutable_data_ptr<double>(), outputs.rule, nonnegative);
  };
  const auto run = [&](cuda::Product product, const auto* in) {
    using V = std::decay_t<decltype(*in)>;
    const V* of_weight = weight.const_data_ptr<V>();
    V* const s = parts.mutable_data_ptr<V>();
    if (product == cuda::Product::kFloat16) {
      // What was widened goes back exactly.
      quotient(product, x.to(at::kHalf).const_data_ptr<at::Half>(),
               weight.to(at::kHalf).const_data_ptr<at::Half>(), s);
      product = cuda::Product::kTF32;
    } else {
      quotient(product, in, of_weight, s);
    }
    cuda::split_conv_contribution(described, product, s, of_weight, in,
                                  out.values.mutable_data_ptr<V>(), statistics, nonnegative);
  };
  const cuda::Product product = product_of(x, storage, described);
  if (product == cuda::Product::kBFloat16) {
    run(product, x.const_data_ptr<at::BFloat16>());
  } else {
    run(product, x.const_data_ptr<float>());
  }
  return out;
}

#else

bool has_fused_conv(const Tensor&, const Tensor&, const Tensor&, const ConvShape&, const Rule&) {
  return false;
}

std::optional<bool> was_fused_conv_faster(const Tensor&, const Tensor&, const Tensor&,
                                          const ConvShape&, bool, at::ScalarType) {
  return std::nullopt;
}

bool is_fused_conv_faster(const Tensor&, const Tensor&, const Tensor&, const ConvShape&, bool,
                          at::ScalarType, const std::function<void()>&,
                          const std::function<void()>&) {
  return false;
}

Gated fused_conv(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Outputs&,
                 const ConvShape&, bool, at::ScalarType, Tensor&) {
  return {};
}

#endif

}  // namespace rapkernels
