// The fused quotient: one pass over (Z+, Z-, R), (z, A, R) or (z, Z-, R) that applies the pending
// shift on load, writes S+ and S-, and sums per sample the relevance, or what a rule without shift
// absorbs.
#include <type_traits>

#include "../rules.h"
#include "bfloat16.h"
#include "simd.h"

namespace rapkernels::cpu {
namespace {

// Loops of their own: with all in one, gcc makes no vectors of some rules.
template <typename T>
RAPKERNELS_CLONES void split_run(const T* __restrict z, const T* __restrict absolute,
                                 T* __restrict positive, T* __restrict negative, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const Quotient<T> parts = split_absolute(z[i], absolute[i]);
    positive[i] = parts.positive;
    negative[i] = parts.negative;
  }
}

RAPKERNELS_CLONES void split_run(const float* __restrict z, const c10::BFloat16* __restrict sums,
                                 float* __restrict positive, float* __restrict negative,
                                 int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const Quotient<float> parts = split_rounded(z[i], widened(sums[i]));
    positive[i] = parts.positive;
    negative[i] = parts.negative;
  }
}

// S+ and S- become the halves of their sum and their difference; halved first, nothing overflows.
template <typename T>
RAPKERNELS_CLONES void halve_run(T* __restrict plus, T* __restrict minus, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const T half = T(0.5) * plus[i];
    const T other = T(0.5) * minus[i];
    plus[i] = half + other;
    minus[i] = half - other;
  }
}

template <typename T, typename R>
RAPKERNELS_CLONES void quotient_run(const T* __restrict positive, const T* __restrict negative,
                                    const T* __restrict relevance, T* __restrict plus,
                                    T* __restrict minus, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const Quotient<T> s = R::quotient(relevance[i], positive[i], negative[i]);
    plus[i] = s.positive;
    minus[i] = s.negative;
  }
}

template <typename T>
RAPKERNELS_CLONES void shift_and_sum(const T* values, T psi, T* out, int64_t size, Sum<T>* sum) {
  shift_run(values, psi, out, size);
  sum->add(out, size);
}

template <typename T, typename R>
RAPKERNELS_CLONES void shares_run(const R rule, const T* __restrict positive,
                                  const T* __restrict negative, const T* __restrict relevance,
                                  const T* __restrict bias, T* __restrict plus, T* __restrict minus,
                                  T* __restrict absorbed, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const Shares<T> s = rule.shares(relevance[i], positive[i], negative[i], bias[i]);
    plus[i] = s.positive;
    minus[i] = s.negative;
    absorbed[i] = s.absorbed;
  }
}

RAPKERNELS_CLONES void round_run(const float* __restrict values, c10::BFloat16* __restrict out,
                                 int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = rounded(values[i]);
}

template <typename T>
RAPKERNELS_CLONES void sum_run(const T* values, int64_t size, Sum<T>* sum) {
  sum->add(values, size);
}

// One rule, for elements [i, i + size) of a sample.
template <typename T, typename R>
struct Run {
  R rule;
  const T* bias;
  Channels channels;
  Form form;

  template <typename M>
  void operator()(const T* first, const M* second, const T* relevance, T shift, int64_t i, T* plus,
                  T* minus, int64_t size, Sum<T>* sum) const {
    T positive[kRun];
    T negative[kRun];
    if constexpr (std::is_same_v<T, M>) {
      if (form == Form::kSplit) {
        divide(first, second, relevance, shift, i, plus, minus, size, sum);
        return;
      }
    }
    split_run(first, second, positive, negative, size);
    divide(positive, negative, relevance, shift, i, plus, minus, size, sum);
    if (form == Form::kEvenOdd) halve_run(plus, minus, size);
  }

  void divide(const T* first, const T* second, const T* relevance, T shift, int64_t i, T* plus,
              T* minus, int64_t size, Sum<T>* sum) const {
    T incoming[kRun];
    if constexpr (R::shifts) {
      shift_and_sum(relevance, shift, incoming, size, sum);
      quotient_run<T, R>(first, second, incoming, plus, minus, size);
    } else {
      T offsets[kRun] = {};
      T absorbed[kRun];
      if (bias != nullptr) spread_bias(bias, channels, i, size, offsets);
      shift_run(relevance, shift, incoming, size);
      shares_run<T, R>(rule, first, second, incoming, offsets, plus, minus, absorbed, size);
      sum_run(absorbed, size, sum);
    }
  }
};

template <typename T, typename M, typename S, typename Run>
void run_all(const Run& run, const T* first, const M* second, const T* relevance, const double* psi,
             S* parts, double* total, const SplitLayout& layout) {
  const int64_t size = layout.rows * layout.columns;
  std::vector<double> partial(layout.samples * tasks_of(size));
  for_each_task(layout.samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    Sum<T> sum;
    const int64_t z = n % layout.period * size;
    const T shift = static_cast<T>(psi_of(psi, n));
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / layout.columns;
      const int64_t column = i % layout.columns;
      const int64_t length = std::min({kRun, end - i, layout.columns - column});
      S* target = parts + n * layout.sample_stride + row * layout.row_stride + column;
      const auto divide = [&](T* plus, T* minus) {
        run(first + z + i, second + z + i, relevance + n * size + i, shift, i, plus, minus, length,
            &sum);
      };
      if constexpr (std::is_same_v<T, S>) {
        divide(target, target + layout.part_offset);
      } else {
        T plus[kRun];
        T minus[kRun];
        divide(plus, minus);
        round_run(plus, target, length);
        round_run(minus, target + layout.part_offset, length);
      }
      i += length;
    }
    partial[n * tasks_of(size) + task] = sum.value();
  });
  reduce(partial, total, layout.samples);
}

}  // namespace

template <typename T, typename M, typename S>
void split_quotient(const T* first, const M* second, const T* relevance, const double* psi,
                    const T* bias, const Channels& channels, S* parts, double* total,
                    const SplitLayout& layout, Form form, const Rule& rule) {
  with_rule<T>(rule, [&](const auto& typed) {
    using R = std::decay_t<decltype(typed)>;
    const Run<T, R> run{typed, bias, channels, form};
    run_all(run, first, second, relevance, psi, parts, total, layout);
  });
}

#define RAPKERNELS_INSTANTIATE(T, M, S)                                                \
  template void split_quotient(const T*, const M*, const T*, const double*, const T*,  \
                               const Channels&, S*, double*, const SplitLayout&, Form, \
                               const Rule&);
RAPKERNELS_INSTANTIATE(float, float, float)
RAPKERNELS_INSTANTIATE(double, double, double)
RAPKERNELS_INSTANTIATE(float, float, c10::BFloat16)
RAPKERNELS_INSTANTIATE(float, c10::BFloat16, c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
