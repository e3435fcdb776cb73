// Bridge between the device-independent ops and the kernels of each device: plain pointers only, so
// that a .cu file needs no torch header. T is the working type: float or double, on CUDA bfloat16
// too, whose sums and quotients are float. Memory is dense; sample n of a (N, M) operand starts at
// n * M. psi may be null (no pending shift), and so may bias (0). Pointers are to the device's
// memory, structs are not.
#pragma once

#include <cstdint>

#include "windows.h"

namespace rapkernels {

// Element types of tensors, where an operand may differ from the working type.
enum class Storage { kFloat64, kFloat32, kBFloat16, kFloat16 };

// A scalar rule of rules.h by name, with its parameters in the order of the ops.
struct Rule {
  enum Kind { kRap, kRapConv, kAbsolute, kEpsilon, kGamma, kAlphaBeta };
  Kind kind;
  double parameters[3];

  // Whether the contributions are shifted uniformly to the total. The other rules are told the
  // bias.
  bool shifts() const { return kind == kRap || kind == kRapConv; }
};

enum class Share { kAbsolute, kRatio, kPositive };

// What the first two operands of the quotient are. Even and odd: (S+ + S-) / 2 and (S+ - S-) / 2
// are written in place of S+ and S-, for a way back in the absolute form too. Rounded: Z- is in
// bfloat16. These two on the CPU alone.
enum class Form {
  kSplit,     // Z+, Z-
  kAbsolute,  // z, A
  kEvenOdd,   // z, A
  kRounded,   // z, Z-
};

// Element i of a sample is of output channel i / inner % count.
struct Channels {
  int64_t count;
  int64_t inner;
};

// Where S+ and S- of an element go: row r, column c of sample n is written at
// n * sample_stride + r * row_stride + c, its second part `part_offset` further on. Z is that of
// sample n % period: samples of the relevance are those of Z, target by target.
struct SplitLayout {
  int64_t samples;
  int64_t period;
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
  kEvenOdd,  // |x| g + x h         (any sign, what |W| and W make of Form::kEvenOdd; CPU alone)
};

// What the uniform shift needs to know of one sample.
struct Statistics {
  double sum;
  double count;
  double largest;
};

// The positive and the negative relevance of one sample, and the factors that make it 1 and -1.
struct SignedSums {
  double positive;
  double negative;
  double positive_rate;
  double negative_rate;
};

// Relevance of `samples` samples, all targets of `inputs` samples of x: sample n belongs to sample
// n % inputs of x. Stacked operands hold a part for each term of equilibrium.h, one after the
// other.
struct TargetShape {
  int64_t samples;
  int64_t inputs;
  int64_t size;
};

// A pool in three dimensions; fewer are padded in front with windows of one position. Relevance has
// targets * samples samples: those of the first target first.
struct PoolShape {
  int64_t samples;
  int64_t targets;
  int64_t channels;
  bool channels_last;
  Windows windows[3];
};

// The channels of each position as one vector; relevance has targets * samples samples.
struct VectorShape {
  int64_t samples;
  int64_t targets;
  int64_t channels;
  int64_t positions;
  bool channels_last;
};

// `nonnegative`: no entry of x is below zero, which saves work where a sign would cost registers.
// `period`: x (or z) has that many samples (rows), and sample n of the relevance goes with n %
// period. `total`: of each sample the relevance that came in, or what was absorbed for a rule
// without shift. M and S, the types of the quotient's second operand and of S+ and S-, are T, or on
// the CPU for a T of float bfloat16: S alone, or both for Form::kRounded.
#define RAPKERNELS_DECLARE_KERNELS                                                                \
  template <typename T>                                                                           \
  void split_weight(const T* weight, T* positive, T* negative, int64_t size);                     \
  template <typename T, typename M, typename S>                                                   \
  void split_quotient(const T* first, const M* second, const T* relevance, const double* psi,     \
                      const T* bias, const Channels& channels, S* parts, double* total,           \
                      const SplitLayout& layout, Form form, const Rule& rule);                    \
  template <typename T>                                                                           \
  void unsplit_quotient(const T* z, const T* relevance, const double* psi, const T* bias,         \
                        const Channels& channels, T* quotient, double* absorbed, int64_t samples, \
                        int64_t period, int64_t size, double factor, double stabilizer);          \
  template <typename T>                                                                           \
  void gate(const T* x, const T* first, const T* second, T* contribution, Statistics* statistics, \
            int64_t samples, int64_t period, int64_t size, Gate form);                            \
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
                           const T* negative, T* contribution, int64_t rows, int64_t period,      \
                           int64_t inputs, int64_t outputs, bool nonnegative);                    \
  template <typename T>                                                                           \
  void max_pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,      \
                const PoolShape& shape, bool absorb_zeros);                                       \
  template <typename T>                                                                           \
  void avg_pool(const T* x, const T* relevance, const double* psi, T* out, double* absorbed,      \
                const PoolShape& shape, Share share, double stabilizer);                          \
  template <typename T>                                                                           \
  void add(const T* a, const T* b, const T* relevance, const double* psi, T* out_a, T* out_b,     \
           double* absorbed, int64_t samples, int64_t targets, int64_t size, Share share,         \
           double stabilizer);                                                                    \
  template <typename T>                                                                           \
  void neurons(const T* x, T* stacked, int64_t size);                                             \
  template <typename T>                                                                           \
  void signed_sums(const T* relevance, const double* psi, SignedSums* sums, int64_t samples,      \
                   int64_t size);                                                                 \
  template <typename T>                                                                           \
  void equilibrium_quotient(const T* messages, const T* relevance, const double* psi,             \
                            const SignedSums* sums, double ratio, T* quotients, double* met,      \
                            const TargetShape& shape);                                            \
  template <typename T>                                                                           \
  void count_hedged(const T* x, const T* gradient, double* count, const TargetShape& shape);      \
  template <typename T>                                                                           \
  void equilibrium_contribution(const T* x, const T* gradients, const double* psi,                \
                                T* contribution, const TargetShape& shape);                       \
  void settle_equilibrium(const SignedSums* sums, const double* met, const double* count,         \
                          const double* scale, double* psi, double* absorbed, int64_t samples);   \
  template <typename T>                                                                           \
  void share_squares(const T* vector, const T* relevance, const double* psi, T* out,              \
                     double* absorbed, const VectorShape& shape);                                 \
  template <typename T>                                                                           \
  void sharing_quotient(const T* z, const T* bias, const double* taps, const T* relevance,        \
                        const double* psi, T* quotient, double* share, double* absorbed,          \
                        const VectorShape& shape);                                                \
  template <typename T>                                                                           \
  void sharing_contribution(const T* x, const double* share, T* gradient, Statistics* statistics, \
                            const VectorShape& shape);

namespace cpu {
RAPKERNELS_DECLARE_KERNELS
}  // namespace cpu

#ifdef RAPKERNELS_WITH_CUDA
namespace cuda {
RAPKERNELS_DECLARE_KERNELS
}  // namespace cuda
#endif

}  // namespace rapkernels
