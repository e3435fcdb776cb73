#include "quotient.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <type_traits>

#include "device.h"
#include "workspace.h"

namespace rapkernels {

Parts quotient(const Tensor& first, const Tensor& second, const Tensor& relevance,
               const OptionalTensor& psi, const Outputs& outputs, Form form, Packing packing,
               at::MemoryFormat format, bool bfloat16) {
  TORCH_INTERNAL_ASSERT(outputs.rule.kind != Rule::kEpsilon, "epsilon has no split quotient");
  const int64_t samples = relevance.size(0);
  const int64_t size = samples ? relevance.numel() / samples : 0;
  const int64_t channels = relevance.dim() > 1 ? relevance.size(1) : 1;

  Parts parts;
  SplitLayout layout{samples, first.size(0), 1, size, 0, 0, 0};
  auto shape = relevance.sizes().vec();
  const auto options = bfloat16 ? relevance.options().dtype(at::kBFloat16) : relevance.options();
  if (packing == Packing::kApart) {
    shape.insert(shape.begin(), 2);
    parts.packed = workspace_empty(shape, options);
    layout.sample_stride = size;
    layout.part_offset = samples * size;
    const auto part = [&](int64_t i) {
      return parts.packed.select(0, i).as_strided(relevance.sizes(), relevance.strides(),
                                                  i * samples * size);
    };
    parts.positive = part(0);
    parts.negative = part(1);
  } else {
    shape[1] = 2 * channels;
    parts.packed = workspace_empty(shape, options.memory_format(format));
    layout.sample_stride = 2 * size;
    layout.part_offset = size;
    if (format != at::MemoryFormat::Contiguous) {
      layout.rows = channels ? size / channels : 0;
      layout.columns = channels;
      layout.row_stride = 2 * channels;
      layout.part_offset = channels;
    }
    parts.positive = parts.packed.narrow(1, 0, channels);
    parts.negative = parts.packed.narrow(1, channels, channels);
  }
  parts.total = per_sample(relevance, 0.0);
  const auto run = [&](const auto& kernel, const auto* z, const auto* other, auto* to) {
    using T = std::decay_t<decltype(*z)>;
    kernel(z, other, relevance.const_data_ptr<T>(), data_or_null(psi),
           outputs.bias ? outputs.bias->const_data_ptr<T>() : nullptr, outputs.channels, to,
           parts.total.mutable_data_ptr<double>(), layout, form, outputs.rule);
  };
  if (bfloat16) {
#if !defined(RAPKERNELS_EMULATED)
    const auto round = [&](const auto* other) {
      using M = std::decay_t<decltype(*other)>;
      run(cpu::split_quotient<float, M, at::BFloat16>, first.const_data_ptr<float>(), other,
          parts.packed.mutable_data_ptr<at::BFloat16>());
    };
    if (form == Form::kRounded) {
      round(second.const_data_ptr<at::BFloat16>());
    } else {
      round(second.const_data_ptr<float>());
    }
#endif
    return parts;
  }
  RAPKERNELS_DISPATCH(relevance, "quotient", [&] {
    run(device::split_quotient<scalar_t, scalar_t, scalar_t>, first.const_data_ptr<scalar_t>(),
        second.const_data_ptr<scalar_t>(), parts.packed.mutable_data_ptr<scalar_t>());
  });
  return parts;
}

Part unsplit_quotient(const Tensor& z, const Tensor& relevance, const OptionalTensor& psi,
                      const OptionalTensor& bias, const Channels& channels, double factor,
                      double stabilizer) {
  Part part{workspace_empty_like(relevance), per_sample(relevance, 0)};
  const int64_t samples = relevance.size(0);
  RAPKERNELS_DISPATCH(relevance, "unsplit_quotient", [&] {
    device::unsplit_quotient(z.const_data_ptr<scalar_t>(), relevance.const_data_ptr<scalar_t>(),
                             data_or_null(psi), bias ? bias->const_data_ptr<scalar_t>() : nullptr,
                             channels, part.s.mutable_data_ptr<scalar_t>(),
                             part.total.mutable_data_ptr<double>(), samples, z.size(0),
                             samples ? relevance.numel() / samples : 0, factor, stabilizer);
  });
  return part;
}

Gated gate(const Tensor& x, const Tensor& first, const OptionalTensor& second, Gate form,
           const Tensor& room) {
  const int64_t samples = first.size(0);
  Gated out{room.defined() ? room : first, empty_statistics(first)};
  RAPKERNELS_DISPATCH(x, "gate", [&] {
    device::gate(x.const_data_ptr<scalar_t>(), first.const_data_ptr<scalar_t>(),
                 second ? second->const_data_ptr<scalar_t>() : nullptr,
                 out.values.mutable_data_ptr<scalar_t>(),
                 reinterpret_cast<Statistics*>(out.statistics.mutable_data_ptr<double>()), samples,
                 x.size(0), samples ? first.numel() / samples : 0, form);
  });
  return out;
}

State settle_by_rule(const Rule& rule, const Tensor& contribution, const Tensor& statistics,
                     const Tensor& total, const OptionalTensor& scale, at::ScalarType storage) {
  if (rule.shifts()) return settle(contribution, statistics, total, scale, storage);
  State state = settle(contribution, statistics, std::nullopt, scale, storage);
  std::get<3>(state) = scale ? total * *scale : total;
  return state;
}

namespace {

std::tuple<Tensor, Tensor, Tensor> split_quotient(const Tensor& z, const Tensor& a,
                                                  const Tensor& relevance, OptionalTensor psi,
                                                  std::string_view rule) {
  constexpr const char* op = "split_quotient";
  check_storage(op, "z", z);
  TORCH_CHECK(z.dim() >= 1, op, ": z must have at least 1 dimension (N, ...), got 0");
  check_like(op, "a", a, "z", z);
  check_like(op, "relevance", relevance, "z", z);
  check_shape(op, "a", a, z.sizes());
  check_targets(op, "relevance", relevance, "z", z, z.sizes().slice(1));
  check_per_sample(op, "psi", psi, relevance);
  const Outputs outputs{parse_rap_rule(op, rule), std::nullopt, {}};
  const auto format = z.suggest_memory_format();
  const Parts parts = quotient(operand(z, format), operand(a, format), operand(relevance, format),
                               psi, outputs, Form::kAbsolute, Packing::kApart, format);
  return {narrowed(parts.positive.clone(), z.scalar_type()),
          narrowed(parts.negative.clone(), z.scalar_type()), parts.total};
}

std::tuple<Tensor, Tensor, Tensor> gate_op(const Tensor& x, const Tensor& gradient,
                                           OptionalTensor total, OptionalTensor scale) {
  constexpr const char* op = "gate";
  check_storage(op, "x", x);
  TORCH_CHECK(x.dim() >= 1, op, ": x must have at least 1 dimension (N, ...), got 0");
  check_like(op, "gradient", gradient, "x", x);
  check_targets(op, "gradient", gradient, "x", x, x.sizes().slice(1));
  check_per_sample(op, "total", total, gradient);
  check_per_sample(op, "scale", scale, gradient);
  const auto format = x.suggest_memory_format();
  const Tensor owned =
      gradient.to(working_type(x), /*non_blocking=*/false, /*copy=*/true).contiguous(format);
  const Gated gated = gate(operand(x, format), owned, std::nullopt, Gate::kProduct);
  const State state = settle(gated.values, gated.statistics, total, scale, x.scalar_type());
  return {std::get<0>(state), std::get<1>(state), std::get<2>(state)};
}

}  // namespace

RAPKERNELS_REGISTER(m) {
  m.impl("split_quotient", &split_quotient);
  m.impl("gate", &gate_op);
}

}  // namespace rapkernels
