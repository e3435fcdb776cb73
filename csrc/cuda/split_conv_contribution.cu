// The way back of a split convolution with the gate in its epilogue: S+ and S- meet the two parts
// of the same weight tile, and C and its statistics are written.
#include "split_conv_tile.cuh"

namespace rapkernels::cuda {
namespace {

template <typename V>
struct Work {
  SplitConv conv;
  const V* parts;
  const V* weight;
  const V* x;
  V* contribution;
  Measure* partial;
  int32_t column_blocks;
};

// Positions of x whose taps read the same: with a stride, every stride-th in each dimension, of
// which there are stride * stride phases.
struct Phase {
  int32_t begin[2];
  Positions positions;

  static __host__ __device__ __forceinline__ Phase at(const SplitConv& conv, int index) {
    const SplitAxis& rows = conv.axes[0];
    const SplitAxis& columns = conv.axes[1];
    Phase phase;
    phase.begin[0] = index / columns.stride;
    phase.begin[1] = index % columns.stride;
    const int32_t height = (rows.size - phase.begin[0] + rows.stride - 1) / rows.stride;
    const int32_t width = (columns.size - phase.begin[1] + columns.stride - 1) / columns.stride;
    phase.positions = {static_cast<int32_t>(conv.targets * conv.samples * height * width),
                       height,
                       width,
                       {1, 1},
                       {rows.results, columns.results},
                       int64_t{conv.groups} * conv.outputs};
    return phase;
  }

  // Whether position k of the kernel reads the phase's positions, and the result it is part of for
  // the first of them.
  static __device__ __forceinline__ bool reads(const SplitAxis& axis, int32_t begin, int32_t k,
                                               int32_t& result) {
    const int32_t from = begin + axis.padding - k * axis.dilation;
    result = from / axis.stride;
    return from % axis.stride == 0;
  }

  // Position of x of a row.
  __device__ __forceinline__ int32_t place(const SplitConv& conv, int32_t row) const {
    const int32_t sample = row / positions.in_sample();
    const int32_t at = row - sample * positions.in_sample();
    const int32_t i = at / positions.width;
    const int32_t j = at - i * positions.width;
    return (begin[0] + i * conv.axes[0].stride) * conv.axes[1].size + begin[1] +
           j * conv.axes[1].stride;
  }
};

__host__ __device__ __forceinline__ int phases_of(const SplitConv& conv) {
  return conv.axes[0].stride * conv.axes[1].stride;
}

template <typename T, typename P, bool nonnegative>
__global__ void __launch_bounds__(T::threads) contribution_kernel(const Work<typename P::In> work) {
  using V = typename P::In;
  using Left = GatheredRows<T, V, 2>;
  using Right = WeightColumns<T, V>;
  __shared__ Tap taps[kMostTaps];
  __shared__ int count;
  char* const memory = dynamic_memory();
  const SplitConv& conv = work.conv;
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t column_block = block % work.column_blocks;
  const int32_t group = block / work.column_blocks % conv.groups;
  const int32_t first_column = column_block * T::columns;
  int32_t row_block = block / work.column_blocks / conv.groups;
  int index = 0;
  Phase phase = Phase::at(conv, index);
  for (;;) {
    const int32_t blocks = (phase.positions.rows + T::rows - 1) / T::rows;
    if (row_block < blocks) break;
    row_block -= blocks;
    phase = Phase::at(conv, ++index);
  }
  const Positions& positions = phase.positions;
  const int32_t first_row = row_block * T::rows;

  if (threadIdx.x == 0) {
    count = 0;
    for (int32_t k = 0; k < conv.axes[0].kernel; ++k) {
      int32_t row, column;
      if (!Phase::reads(conv.axes[0], phase.begin[0], k, row)) continue;
      for (int32_t l = 0; l < conv.axes[1].kernel; ++l) {
        if (!Phase::reads(conv.axes[1], phase.begin[1], l, column)) continue;
        taps[count++] = {static_cast<int16_t>(row), static_cast<int16_t>(column),
                         k * conv.axes[1].kernel + l};
      }
    }
  }
  __syncthreads();

  // Of inputs that are not negative, `up` alone.
  Sums<T> up = {}, down = {};
  const int32_t in_kernel = conv.axes[0].kernel * conv.axes[1].kernel;
  const int64_t samples = conv.targets * conv.samples;
  const int64_t results = int64_t{conv.axes[0].results} * conv.axes[1].results;
  const Left left(work.parts + int64_t{group} * conv.outputs, samples * results * positions.pitch,
                  conv.outputs, positions, first_row);
  const Right right{
      work.weight + int64_t{group} * conv.outputs * in_kernel * conv.inputs + first_column,
      conv.inputs - first_column, conv.outputs, conv.inputs, in_kernel};
  multiply_stages<V>(memory, left, right, positions, taps, count,
                     [&](const char* rows, const char* columns) {
#pragma unroll
                       for (int step = 0; step < kUnits / 2; ++step) {
                         const SplitWeights<T, P, Right> weights(columns, step);
#pragma unroll
                         for (int m = 0; m < T::row_tiles; ++m) {
                           uint32_t entries[2][4];
                           Left::load(entries[0], rows, 0, m, step);
                           Left::load(entries[1], rows, 1, m, step);
                           const auto plus = P::prepare(entries[0]);
                           const auto minus = P::prepare(entries[1]);
#pragma unroll
                           for (int n = 0; n < T::column_tiles; ++n) {
                             P::multiply(up[m][n], plus, weights.at[n].positive);
                             P::multiply(up[m][n], minus, weights.at[n].negative);
                             if constexpr (!nonnegative) {
                               P::multiply(down[m][n], plus, weights.at[n].negative);
                               P::multiply(down[m][n], minus, weights.at[n].positive);
                             }
                           }
                         }
                       }
                     });

  const int64_t channels = int64_t{conv.groups} * conv.inputs;
  const int64_t first_input = int64_t{group} * conv.inputs + first_column;
  const int64_t in_sample = int64_t{conv.axes[0].size} * conv.axes[1].size;
  const int64_t chunks = int64_t{conv.groups} * work.column_blocks;
  reduce_rows<T, Measure>(
      memory,
      [&](int row, int m, int half) {
        Measure measure{};
        if (int64_t{first_row} + row >= positions.rows) return measure;
        const int32_t at = first_row + row;
        const int32_t sample = at / positions.in_sample();
        const int32_t place = phase.place(conv, at);
        const int64_t of_x =
            (sample_of(sample, conv.samples) * in_sample + place) * channels + first_input;
        const int64_t of_c = (sample * in_sample + place) * channels + first_input;
#pragma unroll
        for (int n = 0; n < T::column_tiles; ++n) {
          const int column = T::first_column() + n * 8 + T::lane() % 4 * 2;
          if (first_column + column >= conv.inputs) continue;
          const auto inputs = load<2>(work.x + of_x + column);
          Pack<V, 2> c;
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const float x = accumulated(inputs.at[k]);
            const float above = up[m][n][2 * half + k];
            float product;
            if constexpr (nonnegative) {
              product = x * above;
            } else {
              product = magnitude(x) * (x > 0.0f ? above : down[m][n][2 * half + k]);
            }
            c.at[k] = rounded<V>(finite_or_zero(product));
            measure.add(accumulated(c.at[k]));
          }
          store_pack(work.contribution + of_c + column, c);
        }
        return measure;
      },
      [&](int row, const Measure& measure) {
        if (int64_t{first_row} + row >= positions.rows) return;
        const int32_t at = first_row + row;
        const int64_t sample = at / positions.in_sample();
        work.partial[(sample * in_sample + phase.place(conv, at)) * chunks +
                     int64_t{group} * work.column_blocks + column_block] = measure;
      });
}

template <typename T, typename P, bool nonnegative>
void run(const Work<typename P::In>& work, int64_t blocks) {
  using V = typename P::In;
  constexpr int bytes = kStages * (GatheredRows<T, V, 2>::bytes + WeightColumns<T, V>::bytes);
  launch_with_memory("split_conv_contribution", contribution_kernel<T, P, nonnegative>, blocks,
                     T::threads, bytes, work);
}

template <typename P, bool nonnegative>
void choose_tile(Work<typename P::In> work, Statistics* statistics) {
  using Large = LargeTile<P, nonnegative>;
  const SplitConv& conv = work.conv;
  const auto cut = [&](int64_t rows, int64_t columns) {
    work.column_blocks = static_cast<int32_t>(tiles_of(conv.inputs, columns));
    int64_t row_blocks = 0;
    for (int i = 0; i < phases_of(conv); ++i) {
      row_blocks += tiles_of(Phase::at(conv, i).positions.rows, rows);
    }
    return row_blocks * work.column_blocks * conv.groups;
  };
  int64_t blocks = cut(Large::rows, Large::columns);
  const bool large = blocks >= kManyBlocks;
  if (!large) blocks = cut(SmallTile::rows, SmallTile::columns);
  const int64_t chunks =
      int64_t{conv.axes[0].size} * conv.axes[1].size * conv.groups * work.column_blocks;
  const int64_t samples = conv.targets * conv.samples;
  const Workspace partial(samples * chunks * static_cast<int64_t>(sizeof(Measure)));
  work.partial = partial.as<Measure>();
  if (large) {
    run<Large, P, nonnegative>(work, blocks);
  } else {
    run<SmallTile, P, nonnegative>(work, blocks);
  }
  launch("split_conv_contribution", add_chunks<Measure, Statistics, KeepNone>, samples, kThreads,
         partial.as<const Measure>(), statistics, chunks, KeepNone());
}

template <typename P>
void choose_sign(const Work<typename P::In>& work, Statistics* statistics, bool nonnegative) {
  if (nonnegative) {
    choose_tile<P, true>(work, statistics);
  } else {
    choose_tile<P, false>(work, statistics);
  }
}

}  // namespace

template <typename V>
void split_conv_contribution(const SplitConv& conv, Product product, const V* parts,
                             const V* weight, const V* x, V* contribution, Statistics* statistics,
                             bool nonnegative) {
  const Work<V> work{conv, parts, weight, x, contribution, nullptr, 0};
  if constexpr (std::is_same_v<V, c10::BFloat16>) {
    choose_sign<BFloat16Product>(work, statistics, nonnegative);
  } else if (product == Product::kTF32) {
    choose_sign<TF32Product>(work, statistics, nonnegative);
  } else {
    choose_sign<TF32x3Product>(work, statistics, nonnegative);
  }
}

#define RAPKERNELS_INSTANTIATE(V)                                                                \
  template void split_conv_contribution(const SplitConv&, Product, const V*, const V*, const V*, \
                                        V*, Statistics*, bool);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
