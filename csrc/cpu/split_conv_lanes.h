// Which positions the lanes of the split convolutions are. Compiled for AVX-512, as
// split_conv_registers.h is.
#pragma once

#include <limits>

#include "split_conv_axes.h"
#include "split_conv_tile.h"

namespace rapkernels::cpu {
namespace {

// Lanes: `samples` samples by `rows` by `columns` segments of the positions of one phase.
struct Lanes {
  int64_t samples;
  int64_t rows;
  int64_t columns;
  int64_t height;  // of a segment, in whole tiles
  int64_t width;
  Tile tile;
};

// The lanes and the tile that multiply the least with nothing.
inline Lanes choose_lanes(int64_t samples, int64_t height, int64_t width) {
  Lanes best{};
  double least = std::numeric_limits<double>::infinity();
  for (int64_t n = 1; n <= kLanes; n *= 2) {
    for (int64_t rows = 1; n * rows <= kLanes; rows *= 2) {
      const int64_t columns = kLanes / n / rows;
      for (const Tile& tile : kTiles) {
        const int64_t high = divide_up(divide_up(height, rows), tile.rows) * tile.rows;
        const int64_t wide = divide_up(divide_up(width, columns), tile.columns) * tile.columns;
        const auto size = static_cast<double>(tile.size());
        // A broadcast for each `size` products.
        const double work =
            static_cast<double>(divide_up(samples, n) * high * wide) * (size + 0.5) / size;
        if (work < least) {
          least = work;
          best = {n, rows, columns, high, wide, tile};
        }
      }
    }
  }
  return best;
}

}  // namespace
}  // namespace rapkernels::cpu
