// Bridge between the device-independent ops and the kernels of each device: plain pointers only, so
// that a .cu file needs no torch header. T is the working type: float or double, on CUDA bfloat16
// too, whose sums and quotients are float. Memory is dense; sample n of a (N, M) operand starts at
// n * M. psi may be null (no pending shift). Pointers are to the device's memory, structs are not.
#pragma once

#include <cstdint>

#include "windows.h"

namespace rapkernels {

// Element types of tensors, where an operand may differ from the working type.
enum class Storage { kFloat64, kFloat32, kBFloat16, kFloat16 };

enum class Rule { kRap, kRapConv };
enum class Share { kAbsolute, kRatio };

// What the first two operands of the quotient are.
enum class Form { kSplit /* Z+, Z- */, kAbsolute /* z, A */ };

// Where S+ and S- of an element go: row r, column c of sample n is written at
// n * sample_stride + r * row_stride + c, its second part `part_offset` further on.
struct SplitLayout {
  int64_t samples;
  int64_t rows;
  int64_t columns;
  int64_t sample_stride;
  int64_t row_stride;
  int64_t part_offset;
};

// C from the two gradients of the split backward, by the sign of x.
enum class Gate {
  kProduct,  // x g                 (x >= 0, both parts in one gradient)
  kSum,      // x (g + h)           (x >= 0, one gradient for each part)
  kBySign,   // x+ g + |x-| h       (any sign)
};

// What the uniform shift needs to know of one sample.
struct Statistics {
  double sum;
  double count;
  double largest;
};

// A pool in three dimensions; fewer are padded in front with windows of one position.
struct PoolShape {
  int64_t samples;
  int64_t channels;
  bool channels_last;
  Windows windows[3];
};

// `nonnegative`: no entry of x is below zero, which saves work where a sign would cost registers.
#define RAPKERNELS_DECLARE_KERNELS                                                                \
  template <typename T>                                                                           \
  void split_weight(const T* weight, T* positive, T* negative, int64_t size);                     \
  template <typename T>                                                                           \
  void split_quotient(const T* first, const T* second, const T* relevance, const double* psi,     \
                      T* parts, double* total, const SplitLayout& layout, Form form, Rule rule);  \
  template <typename T>                                                                           \
  void zbox_quotient(const T* z, const T* relevance, const double* psi, T* quotient,              \
                     double* absorbed, int64_t samples, int64_t size);                            \
  template <typename T>                                                                           \
  void gate(const T* x, const T* first, const T* second, T* contribution, Statistics* statistics, \
            int64_t samples, int64_t size, Gate form);                                            \
  template <typename T>                                                                           \
  void measure(const T* values, Statistics* statistics, int64_t samples, int64_t size);           \
  template <typename T>                                                                           \
  void store(const T* values, const double* factor, void* stored, Storage storage,                \
             Statistics* statistics, int64_t samples, int64_t size);                              \
  template <typename T>                                                                           \
  void apply_shift(const T* values, const double* psi, const double* scale, T* relevance,         \
                   double largest, int64_t samples, int64_t size);                                \
  template <typename T>                                                                           \
  void merge(const T* a, const double* psi_a, const double* factor_a, const T* b,                 \
             const double* psi_b, const double* factor_b, T* sum, int64_t samples, int64_t size); \
  void settle_factor(const Statistics* statistics, const double* total, double* factor,           \
                     int64_t samples, Storage storage, bool narrow);                              \
  void settle_shift(const Statistics* statistics, const double* total, const double* factor,      \
                    const double* scale, double* psi, double* out_scale, double* absorbed,        \
                    int64_t samples);                                                             \
  template <typename T>                                                                           \
  void linear_split(const T* x, const void* weight, Storage storage, T* positive, T* negative,    \
                    int64_t rows, int64_t inputs, int64_t outputs, bool nonnegative);             \
  template <typename T>                                                                           \
  void linear_contribution(const T* x, const void* weight, Storage storage, const T* positive,    \
                           const T* negative, T* contribution, int64_t rows, int64_t inputs,      \
                           int64_t outputs, bool nonnegative);                                    \
  template <typename T>                                                                           \
  void max_pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,      \
                const PoolShape& shape);                                                          \
  template <typename T>                                                                           \
  void avg_pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,      \
                const PoolShape& shape, Share share);                                             \
  template <typename T>                                                                           \
  void add(const T* a, const T* b, const T* relevance, const double* psi, T* out_a, T* out_b,     \
           double* absorbed, int64_t samples, int64_t size, Share share);

namespace cpu {
RAPKERNELS_DECLARE_KERNELS
}  // namespace cpu

#ifdef RAPKERNELS_WITH_CUDA
namespace cuda {
RAPKERNELS_DECLARE_KERNELS
}  // namespace cuda
#endif

}  // namespace rapkernels
