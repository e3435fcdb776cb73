// The fused quotient: one pass over (Z+, Z-, R) or (z, A, R) that applies the pending shift on
// load, writes S+ and S-, and sums per sample the relevance, or what a rule without shift absorbs.
#include <type_traits>

#include "../rules.h"
#include "simd.h"

namespace rapkernels::cpu {
namespace {

template <typename T, typename R, Form form>
RAPKERNELS_CLONES void quotient_run(const T* __restrict first, const T* __restrict second,
                                    const T* __restrict relevance, T* __restrict plus,
                                    T* __restrict minus, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    Quotient<T> z{first[i], second[i]};
    if (form == Form::kAbsolute) z = split_absolute(first[i], second[i]);
    const Quotient<T> s = R::quotient(relevance[i], z.positive, z.negative);
    plus[i] = s.positive;
    minus[i] = s.negative;
  }
}

template <typename T>
RAPKERNELS_CLONES void shift_and_sum(const T* values, T psi, T* out, int64_t size, Sum<T>* sum) {
  shift_run(values, psi, out, size);
  sum->add(out, size);
}

template <typename T, typename R, Form form>
RAPKERNELS_CLONES void shares_run(const R rule, const T* __restrict first,
                                  const T* __restrict second, const T* __restrict relevance,
                                  const T* __restrict bias, T* __restrict plus, T* __restrict minus,
                                  T* __restrict absorbed, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    Quotient<T> z{first[i], second[i]};
    if (form == Form::kAbsolute) z = split_absolute(first[i], second[i]);
    const Shares<T> s = rule.shares(relevance[i], z.positive, z.negative, bias[i]);
    plus[i] = s.positive;
    minus[i] = s.negative;
    absorbed[i] = s.absorbed;
  }
}

template <typename T>
RAPKERNELS_CLONES void sum_run(const T* values, int64_t size, Sum<T>* sum) {
  sum->add(values, size);
}

// One rule in one form, for elements [i, i + size) of a sample.
template <typename T, typename R, Form form>
struct Run {
  R rule;
  const T* bias;
  Channels channels;

  void operator()(const T* first, const T* second, const T* relevance, T shift, int64_t i, T* plus,
                  T* minus, int64_t size, Sum<T>* sum) const {
    T incoming[kRun];
    if constexpr (R::shifts) {
      shift_and_sum(relevance, shift, incoming, size, sum);
      quotient_run<T, R, form>(first, second, incoming, plus, minus, size);
    } else {
      T offsets[kRun] = {};
      T absorbed[kRun];
      if (bias != nullptr) spread_bias(bias, channels, i, size, offsets);
      shift_run(relevance, shift, incoming, size);
      shares_run<T, R, form>(rule, first, second, incoming, offsets, plus, minus, absorbed, size);
      sum_run(absorbed, size, sum);
    }
  }
};

template <typename T, typename Run>
void run_all(const Run& run, const T* first, const T* second, const T* relevance, const double* psi,
             T* parts, double* total, const SplitLayout& layout) {
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
      T* target = parts + n * layout.sample_stride + row * layout.row_stride + column;
      run(first + z + i, second + z + i, relevance + n * size + i, shift, i, target,
          target + layout.part_offset, length, &sum);
      i += length;
    }
    partial[n * tasks_of(size) + task] = sum.value();
  });
  reduce(partial, total, layout.samples);
}

}  // namespace

template <typename T>
void split_quotient(const T* first, const T* second, const T* relevance, const double* psi,
                    const T* bias, const Channels& channels, T* parts, double* total,
                    const SplitLayout& layout, Form form, const Rule& rule) {
  with_rule<T>(rule, [&](const auto& typed) {
    using R = std::decay_t<decltype(typed)>;
    const auto run = [&](const auto& of_form) {
      run_all(of_form, first, second, relevance, psi, parts, total, layout);
    };
    if (form == Form::kAbsolute) {
      run(Run<T, R, Form::kAbsolute>{typed, bias, channels});
    } else {
      run(Run<T, R, Form::kSplit>{typed, bias, channels});
    }
  });
}

#define RAPKERNELS_INSTANTIATE(T)                                                      \
  template void split_quotient(const T*, const T*, const T*, const double*, const T*,  \
                               const Channels&, T*, double*, const SplitLayout&, Form, \
                               const Rule&);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
