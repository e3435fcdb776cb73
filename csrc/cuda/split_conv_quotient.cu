// The split forward of a convolution with the quotient in its epilogue: Z+ and Z- stay in
// registers, S+ and S- are written.
#include "../rules.h"
#include "split_conv_tile.cuh"

namespace rapkernels::cuda {
namespace {

template <typename R>
__device__ __forceinline__ Shares<float> share_shifted(float r, const Quotient<float>& z) {
  const Quotient<float> s = R::quotient(r, z.positive, z.negative);
  return {s.positive, s.negative, r};
}

// Any rule that needs both sums, chosen where it is used: the epilogue is short beside the
// product, and a kernel for each would multiply the code.
struct AnyRule {
  Rule::Kind kind;
  Gamma<float> gamma;
  AlphaBeta<float> alpha_beta;

  explicit AnyRule(const Rule& rule)
      : kind(rule.kind), gamma(rule.parameters), alpha_beta(rule.parameters) {}

  // S+ and S-, and what a sample's total adds up: the relevance, or what was absorbed.
  __device__ __forceinline__ Shares<float> shares(float r, const Quotient<float>& z,
                                                  float bias) const {
    switch (kind) {
      case Rule::kRap:
        return share_shifted<Rap>(r, z);
      case Rule::kRapConv:
        return share_shifted<RapConv>(r, z);
      case Rule::kGamma:
        return gamma.shares(r, z.positive, z.negative, bias);
      default:
        return alpha_beta.shares(r, z.positive, z.negative, bias);
    }
  }
};

template <typename In, typename V>
struct Work {
  SplitConv conv;
  Positions positions;
  const In* x;
  const In* weight;
  const V* relevance;
  const double* psi;
  const V* bias;
  V* parts;
  Sum* partial;
  AnyRule rule;
  int32_t column_blocks;
};

template <typename T, typename P, typename V, bool nonnegative>
__global__ void __launch_bounds__(T::threads) quotient_kernel(const Work<typename P::In, V> work) {
  using In = typename P::In;
  using Left = GatheredRows<T, In, 1>;
  using Right = WeightRows<T, In>;
  __shared__ Tap taps[kMostTaps];
  char* const memory = dynamic_memory();
  const SplitConv& conv = work.conv;
  const Positions& positions = work.positions;
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t column_block = block % work.column_blocks;
  const int32_t group = block / work.column_blocks % conv.groups;
  const int32_t first_row = block / work.column_blocks / conv.groups * T::rows;
  const int32_t first_column = column_block * T::columns;

  const int32_t width = conv.axes[1].kernel;
  const int32_t count = conv.axes[0].kernel * width;
  for (int32_t k = static_cast<int32_t>(threadIdx.x); k < count; k += T::threads) {
    taps[k] = {static_cast<int16_t>(k / width * conv.axes[0].dilation - conv.axes[0].padding),
               static_cast<int16_t>(k % width * conv.axes[1].dilation - conv.axes[1].padding), k};
  }
  __syncthreads();

  Sums<T> up = {}, down = {};
  const int64_t first_output = int64_t{group} * conv.outputs + first_column;
  const Left left(work.x + int64_t{group} * conv.inputs, 0, conv.inputs, positions, first_row);
  const Right right{work.weight + first_output * count * conv.inputs, conv.outputs - first_column,
                    conv.inputs, count};
  multiply_stages<In>(memory, left, right, positions, taps, count,
                      [&](const char* rows, const char* columns) {
#pragma unroll
                        for (int step = 0; step < kUnits / 2; ++step) {
                          const SplitWeights<T, P, Right> weights(columns, step);
#pragma unroll
                          for (int m = 0; m < T::row_tiles; ++m) {
                            uint32_t entries[4];
                            Left::load(entries, rows, 0, m, step);
                            if constexpr (nonnegative) {
                              const auto x = P::prepare(entries);
#pragma unroll
                              for (int n = 0; n < T::column_tiles; ++n) {
                                P::multiply(up[m][n], x, weights.at[n].positive);
                                P::multiply(down[m][n], x, weights.at[n].negative);
                              }
                            } else {
                              SplitOperand<P, 4> x;
                              x.split(entries);
#pragma unroll
                              for (int n = 0; n < T::column_tiles; ++n) {
                                P::multiply(up[m][n], x.positive, weights.at[n].positive);
                                P::multiply(down[m][n], x.positive, weights.at[n].negative);
                                P::multiply(up[m][n], x.negative, weights.at[n].negative);
                                P::multiply(down[m][n], x.negative, weights.at[n].positive);
                              }
                            }
                          }
                        }
                      });

  const int64_t channels = int64_t{conv.groups} * conv.outputs;
  const int64_t part_offset = conv.targets * positions.rows * channels;
  const int64_t chunks = int64_t{conv.groups} * work.column_blocks;
  for (int64_t target = 0; target < conv.targets; ++target) {
    reduce_rows<T, Sum>(
        memory,
        [&](int row, int m, int half) {
          Sum sum{};
          const int64_t position = int64_t{first_row} + row;
          if (position >= positions.rows) return sum;
          const auto sample = static_cast<int32_t>(position) / positions.in_sample();
          const auto shift = static_cast<float>(shift_of(work.psi, target * conv.samples + sample));
          const int64_t begin = (target * positions.rows + position) * channels + first_output;
#pragma unroll
          for (int n = 0; n < T::column_tiles; ++n) {
            const int column = T::first_column() + n * 8 + T::lane() % 4 * 2;
            if (first_column + column >= conv.outputs) continue;
            const auto r = load<2>(work.relevance + begin + column);
            Pack<V, 2> plus, minus;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              const float bias =
                  work.bias == nullptr ? 0.0f : accumulated(work.bias[first_output + column + k]);
              const Shares<float> s =
                  work.rule.shares(shifted(accumulated(r.at[k]), shift),
                                   {up[m][n][2 * half + k], down[m][n][2 * half + k]}, bias);
              plus.at[k] = rounded<V>(s.positive);
              minus.at[k] = rounded<V>(s.negative);
              sum.add(s.absorbed);
            }
            store_pack(work.parts + begin + column, plus);
            store_pack(work.parts + part_offset + begin + column, minus);
          }
          return sum;
        },
        [&](int row, const Sum& sum) {
          const int64_t position = int64_t{first_row} + row;
          if (position >= positions.rows) return;
          work.partial[(target * positions.rows + position) * chunks +
                       int64_t{group} * work.column_blocks + column_block] = sum;
        });
  }
}

template <typename T, typename P, typename V, bool nonnegative>
void run(const Work<typename P::In, V>& work, int64_t blocks) {
  constexpr int bytes =
      kStages * (GatheredRows<T, typename P::In, 1>::bytes + WeightRows<T, typename P::In>::bytes);
  launch_with_memory("split_conv_quotient", quotient_kernel<T, P, V, nonnegative>, blocks,
                     T::threads, bytes, work);
}

template <typename P, bool nonnegative, typename V>
void choose_tile(Work<typename P::In, V> work, double* total) {
  using Large = LargeTile<P, nonnegative>;
  const SplitConv& conv = work.conv;
  const auto cut = [&](int64_t rows, int64_t columns) {
    work.column_blocks = static_cast<int32_t>(tiles_of(conv.outputs, columns));
    return tiles_of(work.positions.rows, rows) * work.column_blocks * conv.groups;
  };
  int64_t blocks = cut(Large::rows, Large::columns);
  const bool large = blocks >= kManyBlocks;
  if (!large) blocks = cut(SmallTile::rows, SmallTile::columns);
  const int64_t chunks = int64_t{work.positions.in_sample()} * conv.groups * work.column_blocks;
  const int64_t samples = conv.targets * conv.samples;
  const Workspace partial(samples * chunks * static_cast<int64_t>(sizeof(Sum)));
  work.partial = partial.as<Sum>();
  if (large) {
    run<Large, P, V, nonnegative>(work, blocks);
  } else {
    run<SmallTile, P, V, nonnegative>(work, blocks);
  }
  launch("split_conv_quotient", add_chunks<Sum, double, KeepNone>, samples, kThreads,
         partial.as<const Sum>(), total, chunks, KeepNone());
}

template <typename P, typename V>
void choose_sign(const Work<typename P::In, V>& work, double* total, bool nonnegative) {
  if (nonnegative) {
    choose_tile<P, true>(work, total);
  } else {
    choose_tile<P, false>(work, total);
  }
}

}  // namespace

bool runs_split_conv(const SplitConv& conv, int64_t bytes) {
  const int64_t unit = kUnit / bytes;
  const auto fits = [](int64_t size) { return size < (int64_t{1} << 30); };
  const auto& axes = conv.axes;
  const int64_t x = int64_t{axes[0].size} * axes[1].size;
  const int64_t z = int64_t{axes[0].results} * axes[1].results;
  const auto covered = [](const SplitAxis& axis) {
    return axis.stride <= 4 && axis.padding < 4096 && int64_t{axis.kernel} * axis.dilation < 4096;
  };
  return conv.inputs % unit == 0 && conv.outputs % unit == 0 && covered(axes[0]) &&
         covered(axes[1]) && axes[0].kernel * axes[1].kernel <= kMostTaps &&
         fits(conv.targets * conv.samples * x) && fits(conv.targets * conv.samples * z) &&
         fits(x * conv.inputs * conv.groups) && fits(z * conv.outputs * conv.groups);
}

template <typename In, typename V>
void split_conv_quotient(const SplitConv& conv, Product product, const In* x, const In* weight,
                         const V* relevance, const double* psi, const V* bias, V* parts,
                         double* total, const Rule& rule, bool nonnegative) {
  const auto& axes = conv.axes;
  const Positions positions{static_cast<int32_t>(conv.samples * axes[0].results * axes[1].results),
                            axes[0].results,
                            axes[1].results,
                            {axes[0].stride, axes[1].stride},
                            {axes[0].size, axes[1].size},
                            int64_t{conv.groups} * conv.inputs};
  const Work<In, V> work{conv, positions, x,       weight,        relevance, psi,
                         bias, parts,     nullptr, AnyRule(rule), 0};
  if constexpr (std::is_same_v<In, c10::BFloat16>) {
    choose_sign<BFloat16Product>(work, total, nonnegative);
  } else if constexpr (std::is_same_v<In, c10::Half>) {
    choose_sign<Float16Product>(work, total, nonnegative);
  } else if (product == Product::kTF32) {
    choose_sign<TF32Product>(work, total, nonnegative);
  } else {
    choose_sign<TF32x3Product>(work, total, nonnegative);
  }
}

#define RAPKERNELS_INSTANTIATE(In, V)                                                          \
  template void split_conv_quotient(const SplitConv&, Product, const In*, const In*, const V*, \
                                    const double*, const V*, V*, double*, const Rule&, bool);
RAPKERNELS_INSTANTIATE(float, float)
RAPKERNELS_INSTANTIATE(c10::Half, float)
RAPKERNELS_INSTANTIATE(c10::BFloat16, c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
