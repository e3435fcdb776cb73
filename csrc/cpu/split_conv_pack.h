// How sources of the split convolutions come into planes: 16 lanes of a channel, or in bfloat16 of
// two, one after the other. Compiled for AVX-512, as split_conv_registers.h is.
#pragma once

#include <unistd.h>

#include "split_conv_registers.h"

namespace rapkernels::cpu {
namespace {

// Of planes that stay in the first-level cache, beside what else a tile reads.
inline int64_t planes_bytes() {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  static const long cache = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#else
  static const long cache = 0;
#endif
  return (cache > 0 ? cache : 32 * 1024) / 4 * 3;
}

// `pixels` holds for the 16 lanes of each position where its first channel is, -1 for zeros; at
// most 16 of `channels` are packed. A channel's plane begins `unit` bytes after that of the one
// before.
template <bool negates>
void pack_channels(const float* in, int64_t channels, const int64_t* pixels, int64_t positions,
                   char* out, int64_t unit) {
  const __mmask16 mask = first(channels);
  for (int64_t p = 0; p < positions; ++p, pixels += kLanes, out += kLine) {
    __m512 v[16];
#pragma GCC unroll 16
    for (int l = 0; l < 16; ++l) {
      v[l] = pixels[l] >= 0 ? _mm512_maskz_loadu_ps(mask, in + pixels[l]) : _mm512_setzero_ps();
    }
    transpose(v);
#pragma GCC unroll 16
    for (int c = 0; c < 16; ++c) {
      if (c == channels) break;
      _mm512_store_ps(out + c * unit, negates ? negated(v[c]) : v[c]);
    }
  }
}

// 8 pairs of channels of 16 lanes: rows of 8 become columns.
inline void load_pairs(const c10::BFloat16* in, __mmask16 mask, const int64_t* pixels,
                       __m512i (&v)[8]) {
  const auto row = [&](int l) {
    return pixels[l] >= 0 ? _mm256_maskz_loadu_epi16(mask, in + pixels[l]) : _mm256_setzero_si256();
  };
  const auto rows = [&](int l) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(row(l)), row(l + 4), 1);
  };
  __m512i t[8];
#pragma GCC unroll 2
  for (int half = 0; half < 8; half += 4) {
    const __m512i a = rows(2 * half);
    const __m512i b = rows(2 * half + 1);
    const __m512i c = rows(2 * half + 2);
    const __m512i d = rows(2 * half + 3);
    const __m512i ab[2] = {_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)};
    const __m512i cd[2] = {_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d)};
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      t[half + 2 * k] = _mm512_unpacklo_epi64(ab[k], cd[k]);
      t[half + 2 * k + 1] = _mm512_unpackhi_epi64(ab[k], cd[k]);
    }
  }
  // t[k] and t[4 + k] hold pairs k and 4 + k of lanes 0 to 7 and of lanes 8 to 15, by turns.
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    v[k] = _mm512_shuffle_i32x4(t[k], t[4 + k], 0x88);
    v[4 + k] = _mm512_shuffle_i32x4(t[k], t[4 + k], 0xdd);
  }
}

// planes[pair of channels][part of the second][part of the first][position], `unit` and `plane`
// bytes apart; the second part is negated, as the weights it meets.
inline void pack_pairs(const c10::BFloat16* up, const c10::BFloat16* down, int64_t channels,
                       const int64_t* pixels, int64_t positions, char* out, int64_t plane,
                       int64_t unit) {
  constexpr __mmask32 kFirst = 0x55555555;  // of each pair
  const __mmask16 mask = first(channels);
  const __m512i signs = _mm512_set1_epi16(std::numeric_limits<int16_t>::min());
  for (int64_t p = 0; p < positions; ++p, pixels += kLanes, out += kLine) {
    __m512i a[8];
    __m512i b[8];
    load_pairs(up, mask, pixels, a);
    load_pairs(down, mask, pixels, b);
#pragma GCC unroll 8
    for (int pair = 0; pair < 8; ++pair) {
      const __m512i negative = _mm512_xor_si512(b[pair], signs);
      char* to = out + pair * unit;
      _mm512_store_si512(to, a[pair]);
      _mm512_store_si512(to + plane, _mm512_mask_blend_epi16(kFirst, a[pair], negative));
      _mm512_store_si512(to + 2 * plane, _mm512_mask_blend_epi16(kFirst, negative, a[pair]));
      _mm512_store_si512(to + 3 * plane, negative);
    }
  }
}

}  // namespace
}  // namespace rapkernels::cpu
