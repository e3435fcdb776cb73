// The fused linear step for few samples: W is read once per direction, w+ and |w-| are formed in
// registers. The work is cut by the shape alone, and partial sums are added in a fixed order.
#include <type_traits>

#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;
// Rows of W that a warp of the forward works on at once: each x that it loads is used so often.
constexpr int kRows = 4;
// Blocks that a step is cut into, where its shape allows: several for each multiprocessor.
constexpr int64_t kBlocks = 1024;
// Rows of W whose S+ and S- a block of the backward holds in shared memory.
constexpr int kStage = 64;
// Rows of W that a warp of the backward has under way at once.
constexpr int kAhead = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename A>
__device__ __forceinline__ A positive_part(A value) {
  return value > A(0) ? value : A(0);
}

// Sums `count` values of each lane over the warp: afterwards lane l holds the complete sums of the
// first values[...] from index `base` on. Halves what is left at each step, so that it takes
// count + 32 exchanges instead of 5 * count.
template <int count, int offset, typename A>
__device__ __forceinline__ void warp_sums(A* values, int lane, int& base) {
  if constexpr (offset > 0) {
    if constexpr (count > 1) {
      const bool upper = (lane & offset) != 0;
#pragma unroll
      for (int i = 0; i < count / 2; ++i) {
        const A kept = upper ? values[i + count / 2] : values[i];
        const A sent = upper ? values[i] : values[i + count / 2];
        values[i] = kept + __shfl_xor_sync(0xffffffffu, sent, offset);
      }
      base += upper ? count / 2 : 0;
      warp_sums<count / 2, offset / 2>(values, lane, base);
    } else {
      values[0] += __shfl_xor_sync(0xffffffffu, values[0], offset);
      warp_sums<1, offset / 2>(values, lane, base);
    }
  }
}

// One layer, for rows from `first` on, at most as many as the kernel is compiled for: forward rows
// of x, backward rows of S, of which row r goes with row r % period of x.
template <typename A, typename W>
struct Layer {
  const A* x;
  const W* weight;
  int64_t first;
  int64_t rows;
  int64_t period;
  int64_t inputs;
  int64_t outputs;

  // The row of x for row s of a group of S; beyond the last row the last one.
  __device__ const A* row_of_x(int64_t s) const {
    const int64_t row = first + s < rows ? first + s : rows - 1;
    return x + row % period * inputs;
  }

  // From the first row to row s of the group, with `length` entries in each. Beyond the last row
  // the last one is read again, and its result is not written. In 32 bits, which saves registers.
  __device__ uint32_t offset(uint32_t s, int64_t length) const {
    const auto last = static_cast<uint32_t>(rows - first - 1);
    return (s < last ? s : last) * static_cast<uint32_t>(length);
  }
};

// How the inputs (forward) or the outputs (backward) are shared out between blocks.
struct Cut {
  int64_t size;
  int64_t pieces;
};

Cut cut(int64_t whole, int64_t step, int64_t blocks) {
  const int64_t pieces = std::max<int64_t>(
      1, std::min(ceil_div(kBlocks, std::max<int64_t>(1, blocks)), ceil_div(whole, 4 * step)));
  const int64_t size = ceil_div(ceil_div(whole, pieces), step) * step;
  return {size, std::max<int64_t>(1, ceil_div(whole, size))};
}

// partial[piece][s][0 or 1][output]: Z+ and Z- over the inputs of one piece.
template <typename A, typename W, int samples, int width, bool nonnegative>
__global__ void __launch_bounds__(kThreads)
    split_kernel(const Layer<A, W> layer, const Cut inputs, A* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t piece = blockIdx.x % inputs.pieces;
  const int64_t output = (blockIdx.x / inputs.pieces * kWarps + warp) * kRows;
  const int64_t begin = piece * inputs.size;
  const int64_t end = begin + inputs.size < layer.inputs ? begin + inputs.size : layer.inputs;

  A sums[samples * kRows * 2] = {};
  for (int64_t i = begin + lane * width; i < end; i += kWarp * width) {
    const A* row = layer.x + layer.first * layer.inputs + i;
    Pack<W, width> w[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t j = output + r < layer.outputs ? output + r : layer.outputs - 1;
      w[r] = load<width>(layer.weight + j * layer.inputs + i);
    }
#pragma unroll
    for (int s = 0; s < samples; ++s) {
      const auto x = load<width>(row + layer.offset(s, layer.inputs));
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        A& up = sums[(s * kRows + r) * 2];
        A& down = sums[(s * kRows + r) * 2 + 1];
#pragma unroll
        for (int k = 0; k < width; ++k) {
          const A weight = static_cast<A>(w[r].at[k]);
          const A plus = positive_part(weight);
          const A minus = positive_part(-weight);
          if (nonnegative) {
            up += plus * x.at[k];
            down += minus * x.at[k];
          } else {
            const A above = positive_part(x.at[k]);
            const A below = positive_part(-x.at[k]);
            up += plus * above + minus * below;
            down += minus * above + plus * below;
          }
        }
      }
    }
  }

  int base = 0;
  constexpr int count = samples * kRows * 2;
  warp_sums<count, kWarp / 2>(sums, lane, base);
  constexpr int left = count > kWarp ? count / kWarp : 1;
  // With fewer sums than lanes several lanes hold the same one.
  if (count < kWarp && lane % (kWarp / (count < kWarp ? count : kWarp)) != 0) return;
#pragma unroll
  for (int i = 0; i < left; ++i) {
    const int index = base + i;
    const int s = index / (kRows * 2);
    const int64_t j = output + index / 2 % kRows;
    if (j < layer.outputs) {
      partial[((piece * samples + s) * 2 + index % 2) * layer.outputs + j] = sums[i];
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    add_pieces(const A* partial, A* positive, A* negative, int64_t pieces, int64_t samples,
               int64_t outputs, int64_t rows) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= rows * outputs) return;
  const int64_t s = at / outputs;
  const int64_t j = at - s * outputs;
  A up = A(0);
  A down = A(0);
  for (int64_t p = 0; p < pieces; ++p) {
    const A* of_piece = partial + (p * samples + s) * 2 * outputs + j;
    up += of_piece[0];
    down += of_piece[outputs];
  }
  positive[at] = up;
  negative[at] = down;
}

// partial[piece][s][input]: T_{|w|}, each weight with the S of its message's sign, over the outputs
// of one piece.
template <typename A, typename W, int samples, int width, bool nonnegative>
__global__ void __launch_bounds__(kThreads)
    contribution_kernel(const Layer<A, W> layer, const A* positive, const A* negative,
                        const Cut outputs, A* partial) {
  __shared__ A staged[kStage][samples][2];
  __shared__ A of_warp[kWarps][kWarp * width];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t piece = blockIdx.x % outputs.pieces;
  const int64_t i = blockIdx.x / outputs.pieces * (kWarp * width) + lane * width;
  const bool inside = i < layer.inputs;
  const int64_t begin = piece * outputs.size;
  const int64_t end = begin + outputs.size < layer.outputs ? begin + outputs.size : layer.outputs;

  A up[samples][width] = {};
  A down[samples][width] = {};
  for (int64_t stage = begin; stage < end; stage += kStage) {
    const int height = static_cast<int>(end - stage < kStage ? end - stage : kStage);
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < samples * kStage; e += kThreads) {
      const int s = e / kStage;
      const int j = e % kStage;
      if (j < height) {
        const int64_t from =
            layer.first * layer.outputs + layer.offset(s, layer.outputs) + stage + j;
        staged[j][s][0] = positive[from];
        staged[j][s][1] = negative[from];
      }
    }
    __syncthreads();
    if (!inside) continue;
    for (int top = warp; top < height; top += kWarps * kAhead) {
      Pack<W, width> w[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int j = top + a * kWarps;
        if (j < height) w[a] = load<width>(layer.weight + (stage + j) * layer.inputs + i);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int j = top + a * kWarps;
        if (j >= height) break;
#pragma unroll
        for (int s = 0; s < samples; ++s) {
          const A supporting = staged[j][s][0];
          const A opposing = staged[j][s][1];
#pragma unroll
          for (int k = 0; k < width; ++k) {
            const A weight = static_cast<A>(w[a].at[k]);
            const A plus = positive_part(weight);
            const A minus = positive_part(-weight);
            up[s][k] += plus * supporting + minus * opposing;
            if (!nonnegative) down[s][k] += minus * supporting + plus * opposing;
          }
        }
      }
    }
  }

#pragma unroll
  for (int s = 0; s < samples; ++s) {
    const A* row = nonnegative ? nullptr : layer.row_of_x(s) + i;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const bool below = !nonnegative && inside && row[k] < A(0);
      of_warp[warp][lane * width + k] = below ? down[s][k] : up[s][k];
    }
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < kWarp * width; c += kThreads) {
      const int64_t column = blockIdx.x / outputs.pieces * (kWarp * width) + c;
      A sum = of_warp[0][c];
      for (int k = 1; k < kWarps; ++k) sum += of_warp[k][c];
      if (column < layer.inputs) partial[(piece * samples + s) * layer.inputs + column] = sum;
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    gate_pieces(const A* partial, const A* x, A* contribution, int64_t pieces, int64_t samples,
                int64_t inputs, int64_t first, int64_t rows, int64_t period) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= rows * inputs) return;
  A sum = A(0);
  for (int64_t p = 0; p < pieces; ++p) sum += partial[p * samples * inputs + at];
  const int64_t row = at / inputs;
  const A v = x[(first + row) % period * inputs + (at - row * inputs)];
  contribution[at] = finite_or_zero(magnitude(v) * sum);
}

template <typename A, typename W, int samples, int width, bool nonnegative>
void split(const Layer<A, W>& layer, A* positive, A* negative) {
  const int64_t row_blocks = ceil_div(layer.outputs, kWarps * kRows);
  const Cut inputs = cut(layer.inputs, kWarp * width, row_blocks);
  const Workspace partial(inputs.pieces * samples * 2 * layer.outputs *
                          static_cast<int64_t>(sizeof(A)));
  launch("linear_split", split_kernel<A, W, samples, width, nonnegative>,
         row_blocks * inputs.pieces, kThreads, layer, inputs, partial.as<A>());
  const int64_t rows = std::min<int64_t>(samples, layer.rows - layer.first);
  launch("linear_split", add_pieces<A>, ceil_div(rows * layer.outputs, kThreads), kThreads,
         partial.as<const A>(), positive + layer.first * layer.outputs,
         negative + layer.first * layer.outputs, inputs.pieces, samples, layer.outputs, rows);
}

template <typename A, typename W, int samples, int width, bool nonnegative>
void contribute(const Layer<A, W>& layer, const A* positive, const A* negative, A* contribution) {
  const int64_t column_blocks = ceil_div(layer.inputs, kWarp * width);
  const Cut outputs = cut(layer.outputs, kWarps, column_blocks);
  const Workspace partial(outputs.pieces * samples * layer.inputs *
                          static_cast<int64_t>(sizeof(A)));
  launch("linear_contribution", contribution_kernel<A, W, samples, width, nonnegative>,
         column_blocks * outputs.pieces, kThreads, layer, positive, negative, outputs,
         partial.as<A>());
  const int64_t rows = std::min<int64_t>(samples, layer.rows - layer.first);
  const int64_t from = layer.first * layer.inputs;
  launch("linear_contribution", gate_pieces<A>, ceil_div(rows * layer.inputs, kThreads), kThreads,
         partial.as<const A>(), layer.x, contribution + from, outputs.pieces, samples, layer.inputs,
         layer.first, rows, layer.period);
}

// Calls body(samples, width), two compile-time constants, for each group of rows of x.
template <int most, typename A, typename W, typename Body>
void for_each_group(Layer<A, W>& layer, const Body& body) {
  constexpr int wide = kAccess / (sizeof(W) < 4 ? 4 : sizeof(W));
  const bool aligned = fits(wide, sizeof(W), {layer.inputs}, {layer.weight}) &&
                       fits(wide, sizeof(A), {layer.inputs}, {layer.x});
  const auto with_width = [&](auto samples) {
    if (aligned) {
      body(samples, std::integral_constant<int, wide>{});
    } else {
      body(samples, std::integral_constant<int, 1>{});
    }
  };
  const bool offsets_fit = std::max(layer.inputs, layer.outputs) <= UINT32_MAX / most;
  const int64_t step = offsets_fit ? most : 1;
  for (; layer.first < layer.rows; layer.first += step) {
    const int64_t left = std::min(step, layer.rows - layer.first);
    if (left == 1) {
      with_width(std::integral_constant<int, 1>{});
    } else if (left <= 4) {
      with_width(std::integral_constant<int, 4>{});
    } else {
      with_width(std::integral_constant<int, most>{});
    }
  }
}

// Calls body(weight) with a pointer of the storage type.
template <typename T, typename Body>
void with_weight(const void* weight, Storage storage, const Body& body) {
  if constexpr (std::is_same_v<T, double>) {
    body(static_cast<const double*>(weight));
  } else {
    switch (storage) {
      case Storage::kBFloat16:
        return body(static_cast<const c10::BFloat16*>(weight));
      case Storage::kFloat16:
        return body(static_cast<const c10::Half*>(weight));
      default:
        return body(static_cast<const float*>(weight));
    }
  }
}

// Rows of x whose sums fit in the registers: for x of both signs there are twice as many sums, and
// a narrow W is held as float beside them.
template <typename T, typename W, bool nonnegative>
constexpr int kMost = sizeof(T) == 8 ? 4 : (nonnegative && sizeof(W) == 4 ? 16 : 8);

template <bool nonnegative, typename T>
void split_rows(const T* x, const void* weight, Storage storage, T* positive, T* negative,
                int64_t rows, int64_t inputs, int64_t outputs) {
  with_weight<T>(weight, storage, [&](auto* w) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
    Layer<T, W> layer{x, w, 0, rows, rows, inputs, outputs};
    for_each_group<kMost<T, W, nonnegative>>(layer, [&](auto samples, auto width) {
      split<T, W, samples(), width(), nonnegative>(layer, positive, negative);
    });
  });
}

template <bool nonnegative, typename T>
void contribute_rows(const T* x, const void* weight, Storage storage, const T* positive,
                     const T* negative, T* contribution, int64_t rows, int64_t period,
                     int64_t inputs, int64_t outputs) {
  with_weight<T>(weight, storage, [&](auto* w) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
    Layer<T, W> layer{x, w, 0, rows, period, inputs, outputs};
    for_each_group<kMost<T, W, nonnegative>>(layer, [&](auto samples, auto width) {
      contribute<T, W, samples(), width(), nonnegative>(layer, positive, negative, contribution);
    });
  });
}

}  // namespace

template <typename T>
void linear_split(const T* x, const void* weight, Storage storage, T* positive, T* negative,
                  int64_t rows, int64_t inputs, int64_t outputs, bool nonnegative) {
  const auto kernel = nonnegative ? split_rows<true, T> : split_rows<false, T>;
  kernel(x, weight, storage, positive, negative, rows, inputs, outputs);
}

template <typename T>
void linear_contribution(const T* x, const void* weight, Storage storage, const T* positive,
                         const T* negative, T* contribution, int64_t rows, int64_t period,
                         int64_t inputs, int64_t outputs, bool nonnegative) {
  const auto kernel = nonnegative ? contribute_rows<true, T> : contribute_rows<false, T>;
  kernel(x, weight, storage, positive, negative, contribution, rows, period, inputs, outputs);
}

#define RAPKERNELS_INSTANTIATE(T)                                                               \
  template void linear_split(const T*, const void*, Storage, T*, T*, int64_t, int64_t, int64_t, \
                             bool);                                                             \
  template void linear_contribution(const T*, const void*, Storage, const T*, const T*, T*,     \
                                    int64_t, int64_t, int64_t, int64_t, bool);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
