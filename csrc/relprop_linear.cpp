// The relevance step of a linear layer: RAP's (Eqs. 7-9) and the rules without shift.
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "device.h"
#include "fused_conv.h"
#include "matrix_product.h"
#include "quotient.h"
#include "relprop_conv.h"
#include "split_conv.h"
#include "state.h"
#include "targets.h"
#include "unsplit.h"
#include "workspace.h"

namespace rapkernels {
namespace {

constexpr const char* kOp = "relprop_linear";
constexpr auto kDense = at::MemoryFormat::Contiguous;

// On CUDA, rows from which matrix products on split slices of W are left to torch. On the CPU the
// fused step was measured faster up to 1024 rows. Epsilon, which splits nothing, is torch's
// anywhere.
constexpr int64_t kManyRows = 33;
// On the CPU, rows from which a layer is done as a convolution of size 1 by a kernel of our own, or
// for inputs of any sign by four matrix products.
constexpr int64_t kPointwiseRows = 128;
// Rows that those products are done with at a time, so that what is between them is small.
constexpr int64_t kRowsAtOnce = 1024;
// On shorter sums the cancellation of A - |z| is felt in float32.
constexpr int64_t kShortSum = 64;
// Outputs whose w+ and |w-| are held at a time.
constexpr int64_t kSlice = 1024;

int64_t rows_of(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) rows *= t.size(d);
  return rows;
}

// Z+ and Z- (N, *, outputs), dense.
struct SplitSums {
  Tensor positive;
  Tensor negative;
};

// x (N, *, inputs) and the relevance of the outputs (T N, *, outputs), dense and of one type.
struct Incoming {
  Tensor x;
  Tensor relevance;
  OptionalTensor psi;
  OptionalTensor z;
  std::optional<SplitSums> sums;
  Outputs outputs;
  bool nonnegative;
  int64_t rows;    // of x
  int64_t spread;  // rows of the relevance

  // A tensor shaped like x or like the relevance but for its first and last dimension.
  std::vector<int64_t> shape(int64_t samples, int64_t features) const {
    auto sizes = x.sizes().vec();
    sizes.front() = samples;
    sizes.back() = features;
    return sizes;
  }

  Parts quotient(const Tensor& positive, const Tensor& negative) const {
    const auto of_x = shape(x.size(0), relevance.size(-1));
    return rapkernels::quotient(positive.view(of_x), negative.view(of_x), relevance, psi, outputs,
                                Form::kSplit, Packing::kApart, kDense);
  }
};

// W as the kernels that split it in registers take it: its type may be narrower than that of x.
Tensor as_read(const Tensor& weight) {
  return runs_cuda_kernels(weight) ? weight.contiguous() : accumulated(weight, kDense);
}

// x dense in the type that is computed in, `weight` by as_read().
SplitSums split_sums(const Tensor& x, const Tensor& weight, bool nonnegative) {
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  if (x.numel() == 0 || weight.numel() == 0) {
    return {at::zeros(shape, x.options()), at::zeros(shape, x.options())};
  }
  const SplitSums sums{at::empty(shape, x.options()), at::empty(shape, x.options())};
  RAPKERNELS_DISPATCH_ACCUMULATED(x, kOp, [&] {
    device::linear_split(
        x.const_data_ptr<scalar_t>(), weight.const_data_ptr(), storage_of(weight.scalar_type()),
        sums.positive.mutable_data_ptr<scalar_t>(), sums.negative.mutable_data_ptr<scalar_t>(),
        rows_of(x), weight.size(1), weight.size(0), nonnegative);
  });
  return sums;
}

Gated fused_step(const Incoming& in, const Tensor& weight, Tensor& total) {
  const Tensor w = as_read(weight);
  const int64_t inputs = w.size(1);
  const int64_t outputs = w.size(0);
  const Storage storage = storage_of(w.scalar_type());
  const SplitSums sums = in.sums ? *in.sums : split_sums(in.x, w, in.nonnegative);
  Tensor contribution = workspace_empty(in.shape(in.relevance.size(0), inputs), in.x.options());
  const Parts s = in.quotient(sums.positive, sums.negative);
  total = s.total;
  RAPKERNELS_DISPATCH_ACCUMULATED(in.x, kOp, [&] {
    device::linear_contribution(in.x.const_data_ptr<scalar_t>(), w.const_data_ptr(), storage,
                                s.positive.const_data_ptr<scalar_t>(),
                                s.negative.const_data_ptr<scalar_t>(),
                                contribution.mutable_data_ptr<scalar_t>(), in.spread, in.rows,
                                inputs, outputs, in.nonnegative);
  });
  return {contribution, measure(contribution)};
}

// One matrix product forward and one back.
Gated unsplit_step(const Incoming& in, const Tensor& w, Tensor& total) {
  const LinearOperator map{
      [](const Tensor& x, const Tensor& part) { return matrix_product(x, part); },
      [](const Tensor& s, const Tensor& part) { return matrix_product_transposed(s, part); }};
  return UnsplitStep(map, in.x, w, in.z, in.outputs, in.nonnegative)(in.relevance, in.psi, total);
}

// Calls body(first output, w+, |w-|) for each slice of W.
template <typename Body>
void for_each_slice(const Tensor& w, const Body& body) {
  for (int64_t begin = 0; begin < w.size(0); begin += kSlice) {
    const Tensor slice = w.narrow(0, begin, std::min(kSlice, w.size(0) - begin));
    const Tensor plus = at::empty_like(slice);
    const Tensor minus = at::empty_like(slice);
    RAPKERNELS_DISPATCH(slice, kOp, [&] {
      device::split_weight(slice.const_data_ptr<scalar_t>(), plus.mutable_data_ptr<scalar_t>(),
                           minus.mutable_data_ptr<scalar_t>(), slice.numel());
    });
    body(begin, plus, minus);
  }
}

// For x >= 0 half of the products fall away.
Gated product_step(const Incoming& in, const Tensor& w, Tensor& total) {
  const Tensor x = in.x.view({in.rows, w.size(1)});
  const auto sums_by_products = [&] {
    const Tensor up = in.nonnegative ? x : x.clamp_min(0);
    const Tensor down = in.nonnegative ? Tensor() : x.neg().clamp_min_(0);
    const SplitSums sums{at::empty({x.size(0), w.size(0)}, x.options()),
                         at::empty({x.size(0), w.size(0)}, x.options())};
    for_each_slice(w, [&](int64_t begin, const Tensor& plus, const Tensor& minus) {
      const auto sum = [&](const Tensor& of_positive, const Tensor& of_negative) {
        const Tensor sum = at::mm(up, of_positive.t());
        return in.nonnegative ? sum : sum.addmm_(down, of_negative.t());
      };
      sums.positive.narrow(1, begin, plus.size(0)).copy_(sum(plus, minus));
      sums.negative.narrow(1, begin, plus.size(0)).copy_(sum(minus, plus));
    });
    return sums;
  };
  const SplitSums sums = in.sums ? *in.sums : sums_by_products();
  const Parts s = in.quotient(sums.positive, sums.negative);
  total = s.total;
  const Tensor s_plus = s.positive.view({in.spread, w.size(0)});
  const Tensor s_minus = s.negative.view({in.spread, w.size(0)});
  const Tensor above = at::zeros({in.spread, w.size(1)}, x.options());
  const Tensor below = in.nonnegative ? Tensor() : at::zeros_like(above);
  for_each_slice(w, [&](int64_t begin, const Tensor& plus, const Tensor& minus) {
    const Tensor supporting = s_plus.narrow(1, begin, plus.size(0));
    const Tensor opposing = s_minus.narrow(1, begin, plus.size(0));
    above.addmm_(supporting, plus).addmm_(opposing, minus);
    if (!in.nonnegative) below.addmm_(supporting, minus).addmm_(opposing, plus);
  });
  const auto shape = in.shape(in.relevance.size(0), w.size(1));
  return in.nonnegative ? gate(in.x, above.view(shape), std::nullopt, Gate::kProduct)
                        : gate(in.x, above.view(shape), below.view(shape), Gate::kBySign);
}

// With E and O the halves of S+ + S- and of S+ - S-, C = |x| T_|W|(E) + x T_W(O): the absolute form
// of both ways, four products by the library. It is as exact as S+ and S- of the absolute form are.
// A contribution without a message is exactly zero: the terms of one sum are then those of the
// other, negated, and products of one shape add up in one order.
Gated even_odd_step(const Incoming& in, const Tensor& w, Tensor& total) {
  const Tensor magnitudes = w.abs();
  const int64_t samples = in.x.size(0);
  const int64_t at_once = std::max<int64_t>(1, kRowsAtOnce * samples / in.rows);
  const Gated out{workspace_empty(in.shape(in.relevance.size(0), w.size(1)), in.x.options()),
                  empty_statistics(in.relevance)};
  total = per_sample(in.relevance);
  for (int64_t begin = 0; begin < samples; begin += at_once) {
    const int64_t count = std::min(at_once, samples - begin);
    const Tensor x = in.x.narrow(0, begin, count);
    const Tensor z = in.z ? in.z->narrow(0, begin, count) : matrix_product(x, w);
    const Tensor a = matrix_product(x.abs(), magnitudes);
    // All targets of these samples.
    for (int64_t at = begin; at < in.relevance.size(0); at += samples) {
      const auto own = [&](const Tensor& t) { return t.narrow(0, at, count); };
      const Parts s = quotient(z, a, own(in.relevance), narrow_samples(in.psi, at, count),
                               in.outputs, Form::kEvenOdd, Packing::kApart, kDense);
      const Tensor values = own(out.values);
      const Tensor even = matrix_product_transposed(s.positive, magnitudes, values);
      const Tensor odd = matrix_product_transposed(s.negative, w);
      own(out.statistics).copy_(gate(x, even, odd, Gate::kEvenOdd, values).statistics);
      own(total).copy_(s.total);
    }
  }
  return out;
}

// (N, *, features) as (N, features, 1, rows of a sample), in the same memory where t is dense.
Tensor as_image(const Tensor& t) {
  return t.reshape({t.size(0), 1, -1, t.size(-1)}).permute({0, 3, 1, 2});
}

Tensor as_kernel(const Tensor& weight) { return weight.unsqueeze(-1).unsqueeze(-1); }

ConvShape pointwise() {
  return {at::MemoryFormat::ChannelsLast, {1, 1}, {0, 0}, {1, 1}, 1, {0, 0}, {0, 0}};
}

State relprop_pointwise(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                        const OptionalTensor& psi, const OptionalTensor& scale,
                        std::string_view rule, bool nonnegative, const OptionalTensor& bias,
                        at::ArrayRef<double> parameters, const OptionalTensor& z) {
  const OptionalTensor known = z ? OptionalTensor(as_image(*z)) : std::nullopt;
  State state =
      relprop_conv(as_image(x), as_kernel(weight), known, as_image(relevance), psi, scale, {1, 1},
                   {0, 0, 0, 0}, {1, 1}, 1, rule, nonnegative, bias, parameters, "fp32");
  auto shape = x.sizes().vec();
  shape[0] = relevance.size(0);
  Tensor& values = std::get<0>(state);
  values = values.permute({0, 2, 3, 1}).reshape(shape);
  return state;
}

bool has_many_rows(const Rule& rule, const Tensor& x, int64_t rows) {
  return !runs_cuda_kernels(x) && rows >= kPointwiseRows && x.scalar_type() == at::kFloat &&
         x.numel() > 0 && !is_unsplit(rule);
}

bool is_pointwise(const Tensor& x, const Tensor& weight) {
  return has_split_conv(as_image(x), as_kernel(weight), pointwise());
}

// The same by the tensor cores of a GPU.
bool is_fused(const Tensor& x, const Tensor& weight, const Tensor& relevance, const Rule& rule) {
  if (fused_conv_asked_for() == FusedConv::kOff) return false;
  const auto own = [&](const Tensor& t) {
    return subtracts_sums(rule) ? accumulated(t, kDense) : operand(t, kDense);
  };
  return has_fused_conv(as_image(own(x)), as_kernel(own(weight)), as_image(own(relevance)),
                        pointwise(), rule);
}

// How a layer is done.
enum class Way {
  kPointwise,  // as a convolution of size 1 by kernels of our own
  kEvenOdd,    // by four products of the library
  kFused,      // by kernels of our own that read W once each way
  kUnsplit,    // by two products of the library
  kProducts,   // by products of the library on slices of W
};

Way way_of(const Tensor& x, const Tensor& weight, const Tensor& relevance, const Rule& rule,
           bool nonnegative) {
  const int64_t rows = rows_of(relevance);
  if (has_many_rows(rule, x, rows)) {
    if (!nonnegative && weight.size(1) >= kShortSum && multiplies_exactly()) return Way::kEvenOdd;
    if (is_pointwise(x, weight)) return Way::kPointwise;
  }
  const bool many = runs_cuda_kernels(x) && rows >= kManyRows && x.numel() > 0;
  if (many && is_fused(x, weight, relevance, rule)) return Way::kPointwise;
  if (is_unsplit(rule) && (many || rule.kind == Rule::kEpsilon)) return Way::kUnsplit;
  return many ? Way::kProducts : Way::kFused;
}

State relprop_linear(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                     OptionalTensor psi, OptionalTensor scale, std::string_view rule,
                     bool nonnegative, const OptionalTensor& bias, at::ArrayRef<double> parameters,
                     const OptionalTensor& z, const OptionalTensor& positive,
                     const OptionalTensor& negative) {
  check_linear(kOp, x, weight, relevance);
  check_per_sample(kOp, "psi", psi, relevance);
  check_per_sample(kOp, "scale", scale, relevance);
  const auto check_sums = [&](const char* name, const OptionalTensor& sums) {
    if (!sums) return;
    auto shape = relevance.sizes().vec();
    shape[0] = x.size(0);
    check_like(kOp, name, *sums, "x", x);
    check_shape(kOp, name, *sums, shape);
  };
  check_sums("z", z);
  check_sums("positive", positive);
  check_sums("negative", negative);
  TORCH_CHECK(positive.has_value() == negative.has_value(), kOp,
              ": positive and negative must be given together, got ",
              positive ? "positive" : "negative", " alone");
  const Rule parsed = parse_rule(kOp, rule, parameters, bias, weight);

  const Way way = way_of(x, weight, relevance, parsed, nonnegative);
  if (way == Way::kPointwise) {
    return relprop_pointwise(x, weight, relevance, psi, scale, rule, nonnegative, bias, parameters,
                             z);
  }
  const bool by_products = way == Way::kUnsplit || way == Way::kProducts;
  const bool narrow = by_products && !subtracts_sums(parsed);
  const auto own = [&](const Tensor& t) {
    return narrow ? operand(t, kDense) : accumulated(t, kDense);
  };
  Outputs outputs{parsed, std::nullopt, {weight.size(0), 1}};
  if (bias && !parsed.shifts()) outputs.bias = own(*bias);
  // Rounded to a narrow storage type they are too coarse to be subtracted from, and as divisors.
  OptionalTensor known;
  if (z && working_type(x) == x.scalar_type()) known = own(*z);
  std::optional<SplitSums> sums;
  if (positive && accumulate_type(x.scalar_type()) == x.scalar_type()) {
    sums = {own(*positive), own(*negative)};
  }
  const Incoming in{own(x),     own(relevance),    psi, known, sums, outputs, nonnegative,
                    rows_of(x), rows_of(relevance)};

  Tensor total;
  Gated gated;
  if (way == Way::kEvenOdd) {
    gated = even_odd_step(in, own(weight), total);
  } else if (way == Way::kUnsplit) {
    gated = unsplit_step(in, own(weight), total);
  } else if (way == Way::kProducts) {
    gated = product_step(in, own(weight), total);
  } else {
    gated = fused_step(in, weight, total);
  }
  return settle_by_rule(parsed, gated.values, gated.statistics, total, scale, x.scalar_type());
}

std::tuple<Tensor, Tensor> linear_split(const Tensor& x, const Tensor& weight, bool nonnegative) {
  constexpr const char* op = "linear_split";
  check_linear(op, x, weight);
  const SplitSums sums = split_sums(accumulated(x, kDense), as_read(weight), nonnegative);
  // Sums that overflow are finite in their type, too. The kernels leave no number on the other side
  // of a message that does.
  const double largest = largest_value(x.scalar_type());
  const auto result = [&](const Tensor& sum) {
    return sum.nan_to_num_(0, largest).clamp_max_(largest).to(x.scalar_type());
  };
  return {result(sums.positive), result(sums.negative)};
}

// What would do the products of its step: "linear", the file of kernels of our own, "library", or
// what relprop_conv_kernel says.
std::string relprop_linear_kernel(const Tensor& x, const Tensor& weight, const Tensor& relevance,
                                  const OptionalTensor&, const OptionalTensor&,
                                  std::string_view rule, bool nonnegative,
                                  const OptionalTensor& bias, at::ArrayRef<double> parameters,
                                  const OptionalTensor&, const OptionalTensor&,
                                  const OptionalTensor&) {
  check_linear(kOp, x, weight, relevance);
  const Rule parsed = parse_rule(kOp, rule, parameters, bias, weight);
  switch (way_of(x, weight, relevance, parsed, nonnegative)) {
    case Way::kPointwise:
      return relprop_conv_kernel(as_image(x), as_kernel(weight), std::nullopt, as_image(relevance),
                                 std::nullopt, std::nullopt, {1, 1}, {0, 0, 0, 0}, {1, 1}, 1, rule,
                                 nonnegative, bias, parameters, "fp32");
    case Way::kFused:
      return "linear";
    case Way::kEvenOdd:
    case Way::kUnsplit:
    case Way::kProducts:
      break;
  }
  return "library";
}

}  // namespace

RAPKERNELS_REGISTER(m) {
  m.impl("relprop_linear", &relprop_linear);
  m.impl("linear_split", &linear_split);
}

RAPKERNELS_REGISTER_FOR_ALL(m) { m.impl("relprop_linear_kernel", &relprop_linear_kernel); }

}  // namespace rapkernels
