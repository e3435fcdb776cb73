// AVX-512 pieces of the split convolutions. Only split_conv_*.cpp include this, after every other
// header: what follows it is compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "split_conv_axes.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,fma,bmi2")
#pragma GCC diagnostic push
// gcc's own headers leave the registers undefined whose lanes are all written.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace rapkernels::cpu {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kLine = 64;  // bytes of a register, and of a line of the cache

// What a weight is multiplied with, by its sign: `opposite` is the distance to the plane of the
// other sign. A word is a weight, or two in bfloat16, whose planes are of both signs each.
struct Single {
  static __m512 add(__m512 sum, __m512i word, const void* plane) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(word), _mm512_load_ps(plane), sum);
  }
  static int64_t choose(int32_t word, int64_t opposite) {
    return static_cast<int64_t>(word >> 31) & opposite;
  }
};

struct Pair {
  static __m512 add(__m512 sum, __m512i word, const void* plane) {
    return _mm512_dpbf16_ps(sum, (__m512bh)word, (__m512bh)_mm512_load_si512(plane));
  }
  static int64_t choose(int32_t word, int64_t opposite) {
    return (static_cast<int64_t>(word >> 31) & 2 * opposite) +
           (static_cast<int64_t>(static_cast<int16_t>(word) >> 15) & opposite);
  }
};

// sums[r][c] += sum over i of words[i] * plane[r][c] at offsets[i].
template <typename Format, int R, int C>
__attribute__((noinline)) void accumulate(const int32_t* __restrict words,
                                          const int32_t* __restrict offsets, int64_t size,
                                          const char* plane, int64_t row, int64_t opposite,
                                          float* __restrict sums) {
  __m512 sum[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] = _mm512_load_ps(sums + (r * C + c) * kLanes);
  }
  for (int64_t i = 0; i < size; ++i) {
    const char* source = plane + offsets[i] + Format::choose(words[i], opposite);
    const __m512i word = _mm512_set1_epi32(words[i]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        sum[r][c] = Format::add(sum[r][c], word, source + r * row + c * kLine);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) _mm512_store_ps(sums + (r * C + c) * kLanes, sum[r][c]);
  }
}

struct Tile {
  using Run = void (*)(const int32_t*, const int32_t*, int64_t, const char*, int64_t, int64_t,
                       float*);
  int64_t rows;
  int64_t columns;
  Run single;
  Run pair;

  int64_t size() const { return rows * columns; }
};

template <int R, int C>
constexpr Tile tile() {
  return {R, C, accumulate<Single, R, C>, accumulate<Pair, R, C>};
}

constexpr Tile kTiles[] = {tile<1, 16>(), tile<1, 14>(), tile<1, 12>(), tile<1, 10>(),
                           tile<2, 8>(),  tile<2, 7>(),  tile<2, 6>(),  tile<2, 5>(),
                           tile<4, 4>(),  tile<4, 3>(),  tile<1, 8>(),  tile<1, 7>()};

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

// Rows of 16 become columns.
inline void transpose(__m512 (&v)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto pd = [&](int k) { return _mm512_castps_pd(t[4 * i + k]); };
    v[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(0), pd(2)));
    v[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(0), pd(2)));
    v[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(1), pd(3)));
    v[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(1), pd(3)));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(v[i], v[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_f32x4(v[i], v[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_f32x4(v[8 + i], v[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(v[8 + i], v[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
    v[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
    v[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
    v[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

inline __mmask16 first(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
}

inline __m512 negated(__m512 v) {
  return _mm512_xor_ps(v,
                       _mm512_castsi512_ps(_mm512_set1_epi32(std::numeric_limits<int32_t>::min())));
}

// To bfloat16 and back up: what is in the upper half of each lane.
inline __m512i rounded(__m512 v) {
  const __m256i half = (__m256i)_mm512_cvtneps_pbh(v);
  return _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}

// a in the lower halves of the lanes, b in the upper ones.
inline __m512i interleaved(__m512i a, __m512i b) {
  return _mm512_or_si512(_mm512_srli_epi32(a, 16), b);
}

// The positive of `size` weights, and their offsets; how many they are.
inline int64_t list_positive(const float* weights, const int32_t* offsets, int64_t size,
                             int32_t* words, int32_t* listed) {
  int64_t count = 0;
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 inside = first(size - i);
    const __m512 w = _mm512_maskz_loadu_ps(inside, weights + i);
    const __mmask16 positive = _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_GT_OQ);
    const int64_t found = __builtin_popcount(positive);
    if (words != nullptr) {
      // Compressing into memory is slow on some processors.
      const __m512i at = _mm512_maskz_loadu_epi32(inside, offsets + i);
      _mm512_mask_storeu_epi32(words + count, first(found),
                               _mm512_maskz_compress_epi32(positive, _mm512_castps_si512(w)));
      _mm512_mask_storeu_epi32(listed + count, first(found),
                               _mm512_maskz_compress_epi32(positive, at));
    }
    count += found;
  }
  return count;
}

}  // namespace
}  // namespace rapkernels::cpu
