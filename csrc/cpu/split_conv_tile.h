// The products of the split convolutions. Compiled for AVX-512, as split_conv_registers.h is.
#pragma once

#include "split_conv_registers.h"

namespace rapkernels::cpu {
namespace {

// What a weight is multiplied with, by its sign: `opposite` is the distance to the plane of the
// other sign. A word is a weight, or two in bfloat16, whose planes are of both signs each.
struct Single {
  static __m512 add(__m512 sum, __m512i word, const void* plane) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(word), _mm512_load_ps(plane), sum);
  }
  static __m512i choose(__m512i words, __m512i opposite) {
    return _mm512_and_si512(_mm512_srai_epi32(words, 31), opposite);
  }
};

struct Pair {
  static __m512 add(__m512 sum, __m512i word, const void* plane) {
    return _mm512_dpbf16_ps(sum, (__m512bh)word, (__m512bh)_mm512_load_si512(plane));
  }
  static __m512i choose(__m512i words, __m512i opposite) {
    const __m512i second = Single::choose(words, _mm512_add_epi32(opposite, opposite));
    return _mm512_add_epi32(second, Single::choose(_mm512_slli_epi32(words, 16), opposite));
  }
};

// A channel of the results: the words that its tile of sums is made of, at least one, and where in
// the planes of the first sign each meets its source.
struct Row {
  const int32_t* words;
  const int32_t* offsets;
  int64_t size;
  float* sums;
};

constexpr int64_t kRowsAhead = 2;  // whose words are asked for

inline void prefetch(const Row& row) {
  for (int64_t i = 0; i < row.size; i += kLanes) {
    _mm_prefetch(reinterpret_cast<const char*>(row.words + i), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(row.offsets + i), _MM_HINT_T0);
  }
}

// 16 words and their sources, of which the first two are taken at a time.
struct Words {
  __m512i words;
  __m512i sources;
};

template <typename Format>
inline Words load_words(const Row& row, int64_t from, __m512i opposite) {
  const __mmask16 inside = first(row.size - from);
  const __m512i words = _mm512_maskz_loadu_epi32(inside, row.words + from);
  const __m512i offsets = _mm512_maskz_loadu_epi32(inside, row.offsets + from);
  return {words, _mm512_add_epi32(offsets, Format::choose(words, opposite))};
}

struct Two {
  int64_t words;
  int64_t sources;
};

inline Two first_two(const Words& from) {
  const auto low = [](__m512i v) { return _mm_cvtsi128_si64(_mm512_castsi512_si128(v)); };
  Two two{low(from.words), low(from.sources)};
  // Here, not where they are used.
  asm volatile("" : "+r"(two.words), "+r"(two.sources));
  return two;
}

inline Words without_two(const Words& from, const Words& next) {
  return {_mm512_alignr_epi64(next.words, from.words, 1),
          _mm512_alignr_epi64(next.sources, from.sources, 1)};
}

template <typename Format, int R, int C>
inline __attribute__((always_inline)) void add_word(__m512 (&sum)[R][C], int32_t word,
                                                    const char* source, int64_t pitch) {
  const __m512i all = _mm512_set1_epi32(word);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] = Format::add(sum[r][c], all, source + c * kLine);
    source += pitch;
    // One address that moves on: gcc would keep R of them in too few registers.
    if (r + 1 < R) asm("" : "+r"(source));
  }
}

// sums[r][c] += sum over i of words[i] * plane[r][c] at offsets[i] for each row; `pitch` bytes lie
// between plane[r] and plane[r + 1]. The products ask for two loads in each cycle, all there are,
// so that a scalar load that an address waits for stops them. Words and offsets are therefore
// loaded by 16, the next ones early, and the addresses are taken out of registers, two words ahead.
template <typename Format, int R, int C>
__attribute__((noinline)) void accumulate(const Row* row, int64_t rows, const char* plane,
                                          int64_t pitch, int64_t opposite) {
  const __m512i opposites = _mm512_set1_epi32(static_cast<int32_t>(opposite));
  const Row* const end = row + rows;
  Words next = load_words<Format>(*row, 0, opposites);
  for (; row != end; ++row) {
    if (end - row > kRowsAhead) prefetch(row[kRowsAhead]);
    Words now = next;
    Two two = first_two(now);
    __m512 sum[R][C];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) sum[r][c] = _mm512_load_ps(row->sums + (r * C + c) * kLanes);
    }
    for (int64_t from = 0; from < row->size; from += kLanes) {
      const int64_t left = row->size - from;
      const bool has_more = left > kLanes;
      const Row& source = has_more || row + 1 == end ? *row : row[1];
      next = load_words<Format>(source, has_more ? from + kLanes : 0, opposites);
      const int64_t here = has_more ? kLanes : left;
      for (int64_t i = 1; i < here; i += 2) {
        const Two these = two;
        now = without_two(now, next);
        two = first_two(now);
        add_word<Format>(sum, static_cast<int32_t>(these.words),
                         plane + static_cast<int32_t>(these.sources), pitch);
        add_word<Format>(sum, static_cast<int32_t>(these.words >> 32),
                         plane + (these.sources >> 32), pitch);
      }
      if (here % 2 == 1) {
        add_word<Format>(sum, static_cast<int32_t>(two.words),
                         plane + static_cast<int32_t>(two.sources), pitch);
      }
      now = next;
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) _mm512_store_ps(row->sums + (r * C + c) * kLanes, sum[r][c]);
    }
  }
}

struct Tile {
  using Accumulate = void (*)(const Row*, int64_t, const char*, int64_t, int64_t);
  int64_t rows;
  int64_t columns;
  Accumulate single;
  Accumulate pair;

  int64_t size() const { return rows * columns; }
};

template <int R, int C>
constexpr Tile tile() {
  return {R, C, accumulate<Single, R, C>, accumulate<Pair, R, C>};
}

constexpr Tile kTiles[] = {tile<1, 16>(), tile<1, 14>(), tile<1, 12>(), tile<1, 10>(),
                           tile<2, 8>(),  tile<2, 7>(),  tile<2, 6>(),  tile<2, 5>(),
                           tile<4, 4>(),  tile<4, 3>(),  tile<1, 8>(),  tile<1, 7>()};

}  // namespace
}  // namespace rapkernels::cpu
