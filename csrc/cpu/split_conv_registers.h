// Registers of the split convolutions. Only they include this, after every other header: what
// follows it is compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <limits>

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

inline __mmask16 first(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
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
