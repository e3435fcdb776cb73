// The fused quotient: one pass over (Z+, Z-, R) or (z, A, R) that applies the pending shift on
// load, writes S+ and S-, and sums the relevance per sample.
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

template <typename T>
using Run = void (*)(const T*, const T*, const T*, T*, T*, int64_t);

template <typename T, typename R>
Run<T> pick(Form form) {
  return form == Form::kAbsolute ? quotient_run<T, R, Form::kAbsolute>
                                 : quotient_run<T, R, Form::kSplit>;
}

template <typename T>
Run<T> pick(Rule rule, Form form) {
  return rule == Rule::kRap ? pick<T, Rap>(form) : pick<T, RapConv>(form);
}

}  // namespace

template <typename T>
void split_quotient(const T* first, const T* second, const T* relevance, const double* psi,
                    T* parts, double* total, const SplitLayout& layout, Form form, Rule rule) {
  const int64_t size = layout.rows * layout.columns;
  const Run<T> run = pick<T>(rule, form);
  std::vector<double> partial(layout.samples * tasks_of(size));
  for_each_task(layout.samples, size, [&](int64_t n, int64_t task, int64_t begin, int64_t end) {
    T buffer[kRun];
    Sum<T> sum;
    const T shift = static_cast<T>(psi_of(psi, n));
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / layout.columns;
      const int64_t column = i % layout.columns;
      const int64_t length = std::min({kRun, end - i, layout.columns - column});
      const int64_t source = n * size + i;
      T* target = parts + n * layout.sample_stride + row * layout.row_stride + column;
      shift_and_sum(relevance + source, shift, buffer, length, &sum);
      run(first + source, second + source, buffer, target, target + layout.part_offset, length);
      i += length;
    }
    partial[n * tasks_of(size) + task] = sum.value();
  });
  reduce(partial, total, layout.samples);
}

template void split_quotient(const float*, const float*, const float*, const double*, float*,
                             double*, const SplitLayout&, Form, Rule);
template void split_quotient(const double*, const double*, const double*, const double*, double*,
                             double*, const SplitLayout&, Form, Rule);

}  // namespace rapkernels::cpu
