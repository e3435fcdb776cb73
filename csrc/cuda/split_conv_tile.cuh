// What both directions of a split convolution share: the tile of a block, its way from global
// memory to registers, and how sums over the entries of a position are handed on.
#pragma once

#include <type_traits>

#include "elementwise.cuh"
#include "split_conv.h"
#include "tensor_cores.cuh"

namespace rapkernels::cuda {

// A block makes rows x columns sums: rows are positions, columns are channels. Its warps stand in
// warp_rows x warp_columns, each with row_tiles x column_tiles products of 16 x 8.
template <int warp_rows_, int warp_columns_, int row_tiles_, int column_tiles_>
struct Tile {
  static constexpr int warp_columns = warp_columns_;
  static constexpr int row_tiles = row_tiles_;
  static constexpr int column_tiles = column_tiles_;
  static constexpr int threads = kWarp * warp_rows_ * warp_columns_;
  static constexpr int rows = warp_rows_ * row_tiles_ * 16;
  static constexpr int columns = warp_columns_ * column_tiles_ * 8;

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int warp_column() {
    return static_cast<int>(threadIdx.x) / kWarp % warp_columns_;
  }
  // Where the products of this warp begin.
  static __device__ __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / kWarp / warp_columns_ * (row_tiles_ * 16);
  }
  static __device__ __forceinline__ int first_column() { return warp_column() * column_tiles_ * 8; }
};
using SmallTile = Tile<2, 2, 2, 4>;  // 64 x 64, 128 threads
// 128 x 128, 256 threads; but for what would spill registers: four products of halves in two sums.
template <typename P, bool nonnegative>
using LargeTile = std::conditional_t<!nonnegative && std::is_same_v<P, TF32x3Product>, SmallTile,
                                     Tile<2, 4, 4, 4>>;

template <typename T>
using Sums = float[T::row_tiles][T::column_tiles][4];

// Units of a row that a stage holds, and stages: one is multiplied while the next arrive.
constexpr int kUnits = 4;
constexpr int kStages = 4;
// Entries of a row in a stage.
template <typename In>
constexpr int kDepth = kUnits * Entries<In>::in_unit;

// Where unit u of a row lies: eight rows that are read at once fall on different banks.
__device__ __forceinline__ int unit_of(int row, int unit) {
  return row * kUnits + (unit ^ (row >> 1 & (kUnits - 1)));
}

// Position k of the kernel as what it adds to a position of the grid to find its source.
struct Tap {
  int16_t row;
  int16_t column;
  int32_t weight;  // its place in the kernel
};
constexpr int kMostTaps = 64;

// The grid of positions that the rows of the product are, sample by sample, and what they read.
struct Positions {
  int32_t rows;    // of all samples
  int32_t height;  // of one
  int32_t width;
  int32_t step[2];  // of the source
  int32_t source[2];
  int64_t pitch;  // entries from a source position to the next

  __device__ __forceinline__ int32_t in_sample() const { return height * width; }
};

// The stages' cursor over taps and channels.
struct Cursor {
  int tap;
  int channel;

  __device__ __forceinline__ void advance(int depth, int channels) {
    channel += depth;
    if (channel < channels) return;
    channel = 0;
    ++tap;
  }
};

// Rows of the left factor: `parts` tensors of the same shape, gathered from their sources.
template <typename T, typename In, int parts>
struct GatheredRows {
  static constexpr int bytes = parts * T::rows * kUnits * kUnit;
  static constexpr int kOwn = T::rows * kUnits / T::threads;

  const In* from;
  int64_t samples[kOwn];  // where the sample of a row begins
  int32_t at[kOwn][2];    // its source without tap; outside of every source beyond the last row
  int64_t part_offset;
  int32_t channels;

  __device__ __forceinline__ GatheredRows(const In* tensor, int64_t offset, int32_t count,
                                          const Positions& positions, int32_t first)
      : from(tensor), part_offset(offset), channels(count) {
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int64_t row = int64_t{first} + own_row(k);
      if (row >= positions.rows) {
        samples[k] = 0;
        at[k][0] = at[k][1] = -(1 << 30);
        continue;
      }
      const auto known = static_cast<int32_t>(row);
      const int32_t sample = known / positions.in_sample();
      const int32_t place = known - sample * positions.in_sample();
      const int32_t i = place / positions.width;
      at[k][0] = i * positions.step[0];
      at[k][1] = (place - i * positions.width) * positions.step[1];
      samples[k] = sample * (int64_t{positions.source[0]} * positions.source[1] * positions.pitch);
    }
  }

  static __device__ __forceinline__ int own_row(int k) {
    return static_cast<int>(threadIdx.x) / kUnits + k * (T::threads / kUnits);
  }

  __device__ __forceinline__ void copy(char* stage, const Positions& positions, const Tap& tap,
                                       int channel) const {
    const int unit = static_cast<int>(threadIdx.x) % kUnits;
    const int32_t entry = channel + unit * Entries<In>::in_unit;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int32_t i = at[k][0] + tap.row;
      const int32_t j = at[k][1] + tap.column;
      const bool valid = entry < channels && i >= 0 && i < positions.source[0] && j >= 0 &&
                         j < positions.source[1];
      const int64_t source =
          valid ? samples[k] + (i * positions.source[1] + j) * positions.pitch + entry : 0;
      char* to = stage + unit_of(own_row(k), unit) * kUnit;
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        copy_unit(to + part * (T::rows * kUnits * kUnit), from + part * part_offset + source,
                  valid);
      }
    }
  }

  // 16 rows of the warp at depth `step`, of one part.
  static __device__ __forceinline__ void load(uint32_t (&to)[4], const char* stage, int part,
                                              int row_tile, int step) {
    const int row = T::first_row() + row_tile * 16 + T::lane() % 16;
    load_matrices(
        to, stage + (part * T::rows * kUnits + unit_of(row, 2 * step + T::lane() / 16)) * kUnit);
  }
};

// Columns of the right factor whose entries along the depth are contiguous: output channels, where
// the depth goes over input channels.
template <typename T, typename In>
struct WeightRows {
  static constexpr int bytes = T::columns * kUnits * kUnit;
  static constexpr int kOwn = T::columns * kUnits / T::threads;

  const In* weight;
  int32_t columns;  // left from the first of the block on
  int32_t channels;
  int32_t taps;

  __device__ __forceinline__ void copy(char* stage, const Tap& tap, int channel) const {
    const int unit = static_cast<int>(threadIdx.x) % kUnits;
    const int32_t entry = channel + unit * Entries<In>::in_unit;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int column = static_cast<int>(threadIdx.x) / kUnits + k * (T::threads / kUnits);
      const bool valid = column < columns && entry < channels;
      const int64_t at =
          valid ? (int64_t{column} * taps + tap.weight) * channels + entry : int64_t{0};
      copy_unit(stage + unit_of(column, unit) * kUnit, weight + at, valid);
    }
  }

  static __device__ __forceinline__ void load(uint32_t (&to)[T::column_tiles][2], const char* stage,
                                              int step) {
#pragma unroll
    for (int pair = 0; pair < T::column_tiles / 2; ++pair) {
      const int lane = T::lane();
      const int column = T::first_column() + pair * 16 + lane / 16 * 8 + lane % 8;
      uint32_t found[4];
      load_matrices(found, stage + unit_of(column, 2 * step + lane / 8 % 2) * kUnit);
      to[2 * pair][0] = found[0];
      to[2 * pair][1] = found[1];
      to[2 * pair + 1][0] = found[2];
      to[2 * pair + 1][1] = found[3];
    }
  }
};

// Columns of the right factor that are contiguous themselves: input channels, where the depth goes
// over output channels.
template <typename T, typename In>
struct WeightColumns {
  static constexpr int in_unit = Entries<In>::in_unit;
  static constexpr bool is_pair = sizeof(In) == 2;
  // 32-bit entries are read one by one: rows 8 banks apart.
  static constexpr int kPitch = T::columns / in_unit + (is_pair ? 0 : 2);
  static constexpr int bytes = kDepth<In> * kPitch * kUnit;
  static constexpr int kOwn = kDepth<In> * (T::columns / in_unit) / T::threads;

  const In* weight;
  int32_t columns;  // left from the first of the block on
  int32_t channels;
  int32_t inputs;
  int32_t taps;

  static __device__ __forceinline__ int place(int row, int unit) {
    return row * kPitch + (is_pair ? unit ^ (row & 7) : unit);
  }

  __device__ __forceinline__ void copy(char* stage, const Tap& tap, int channel) const {
    constexpr int across = T::columns / in_unit;
    const int unit = static_cast<int>(threadIdx.x) % across;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int row = static_cast<int>(threadIdx.x) / across + k * (T::threads / across);
      const bool valid = unit * in_unit < columns && channel + row < channels;
      const int64_t at =
          valid ? (int64_t{channel + row} * taps + tap.weight) * inputs + unit * in_unit
                : int64_t{0};
      copy_unit(stage + place(row, unit) * kUnit, weight + at, valid);
    }
  }

  static __device__ __forceinline__ void load(uint32_t (&to)[T::column_tiles][2], const char* stage,
                                              int step) {
    const int lane = T::lane();
    if constexpr (is_pair) {
#pragma unroll
      for (int pair = 0; pair < T::column_tiles / 2; ++pair) {
        const int unit = T::first_column() / in_unit + 2 * pair + lane / 16;
        uint32_t found[4];
        load_transposed(found, stage + place(step * 16 + lane % 16, unit) * kUnit);
        to[2 * pair][0] = found[0];
        to[2 * pair][1] = found[1];
        to[2 * pair + 1][0] = found[2];
        to[2 * pair + 1][1] = found[3];
      }
    } else {
#pragma unroll
      for (int tile = 0; tile < T::column_tiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = step * 8 + half * 4 + lane % 4;
          const int column = T::first_column() + tile * 8 + lane / 4;
          memcpy(&to[tile][half], stage + row * (kPitch * kUnit) + column * 4, 4);
        }
      }
    }
  }
};

// The positive entries of registers and the magnitudes of the negative ones.
template <typename P, int count>
struct SplitOperand {
  typename P::template Operand<count> positive;
  typename P::template Operand<count> negative;

  __device__ __forceinline__ void split(const uint32_t (&entries)[count]) {
    uint32_t up[count], down[count];
#pragma unroll
    for (int i = 0; i < count; ++i) Entries<typename P::In>::split(entries[i], up[i], down[i]);
    positive = P::prepare(up);
    negative = P::prepare(down);
  }
};

// w+ and |w-| of one step of a stage.
template <typename T, typename P, typename Right>
struct SplitWeights {
  SplitOperand<P, 2> at[T::column_tiles];

  __device__ __forceinline__ SplitWeights(const char* stage, int step) {
    uint32_t entries[T::column_tiles][2];
    Right::load(entries, stage, step);
#pragma unroll
    for (int n = 0; n < T::column_tiles; ++n) at[n].split(entries[n]);
  }
};

// Multiplies all stages: `left` and `right` copy, multiply(stage of left, stage of right) adds up.
template <typename In, typename Left, typename Right, typename Multiply>
__device__ __forceinline__ void multiply_stages(char* memory, const Left& left, const Right& right,
                                                const Positions& positions, const Tap* taps,
                                                int tap_count, const Multiply& multiply) {
  constexpr int depth = kDepth<In>;
  constexpr int bytes = Left::bytes + Right::bytes;
  const int steps = tap_count * ((left.channels + depth - 1) / depth);
  Cursor cursor{0, 0};
  const auto copy = [&](int step) {
    if (step < steps) {
      char* stage = memory + step % kStages * bytes;
      left.copy(stage, positions, taps[cursor.tap], cursor.channel);
      right.copy(stage + Left::bytes, taps[cursor.tap], cursor.channel);
      cursor.advance(depth, left.channels);
    }
    end_group();
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_groups<kStages - 2>();
    __syncthreads();
    copy(step + kStages - 1);
    const char* stage = memory + step % kStages * bytes;
    multiply(stage, stage + Left::bytes);
  }
  wait_for_groups<0>();
  __syncthreads();
}

// Calls entries(row of the block, row tile, half) for each row that this thread has sums of, which
// returns what it reduces, and leaves the sum of each row's entries for whoever writes them. The
// sums of column tile n are those of [row tile][n][2 half] and [2 half + 1], for columns
// first_column() + 8 n + 2 (lane % 4) and the next.
template <typename T, typename Reduced, typename RowEntries, typename Write>
__device__ __forceinline__ void reduce_rows(char* memory, const RowEntries& entries,
                                            const Write& write_row) {
  auto* of_warp = reinterpret_cast<Reduced*>(memory);
#pragma unroll
  for (int tile = 0; tile < T::row_tiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = T::first_row() + tile * 16 + half * 8 + T::lane() / 4;
      Reduced sum = entries(row, tile, half);
      sum += shuffled_down(sum, 2);
      sum += shuffled_down(sum, 1);
      if (T::lane() % 4 == 0) of_warp[T::warp_column() * T::rows + row] = sum;
    }
  }
  __syncthreads();
  for (int row = static_cast<int>(threadIdx.x); row < T::rows; row += T::threads) {
    Reduced sum = of_warp[row];
#pragma unroll
    for (int w = 1; w < T::warp_columns; ++w) sum += of_warp[w * T::rows + row];
    write_row(row, sum);
  }
  __syncthreads();
}

// Blocks from which large tiles keep a GPU busy. Fixed, so that sums do not depend on the GPU.
constexpr int64_t kManyBlocks = 128;

inline int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

}  // namespace rapkernels::cuda
