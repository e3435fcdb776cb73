// The fused quotient: one pass over (Z+, Z-, R) or (z, A, R) that applies the pending shift on
// load, writes S+ and S-, and sums the relevance per sample.
#include "../rules.h"
#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

template <typename T, typename R, Form form>
struct SplitQuotient {
  using Reduced = Sum;
  const T* first;
  const T* second;
  const T* relevance;
  const double* psi;
  T* parts;
  SplitLayout layout;
  int64_t size;

  // Where element i of a sample goes; a 64-bit division would cost more than the quotient.
  __device__ int64_t place(int64_t i) const {
    if (layout.rows == 1) return i;
    if (size <= UINT32_MAX) {
      const auto at = static_cast<uint32_t>(i);
      const auto columns = static_cast<uint32_t>(layout.columns);
      const uint32_t row = at / columns;
      return row * layout.row_stride + (at - row * columns);
    }
    const int64_t row = i / layout.columns;
    return row * layout.row_stride + (i - row * layout.columns);
  }

  template <int width>
  __device__ void run(int64_t n, int64_t i, Sum& sum) const {
    using A = Acc<T>;
    const int64_t at = n * size + i;
    const A shift = static_cast<A>(shift_of(psi, n));
    const auto a = load<width>(first + at);
    const auto b = load<width>(second + at);
    const auto r = load<width>(relevance + at);
    Pack<T, width> plus, minus;
    for (int k = 0; k < width; ++k) {
      Quotient<A> z{accumulated(a.at[k]), accumulated(b.at[k])};
      if (form == Form::kAbsolute) z = split_absolute(z.positive, z.negative);
      const A incoming = shifted(accumulated(r.at[k]), shift);
      const Quotient<A> s = R::quotient(incoming, z.positive, z.negative);
      plus.at[k] = rounded<T>(s.positive);
      minus.at[k] = rounded<T>(s.negative);
      sum.add(incoming);
    }
    T* to = parts + n * layout.sample_stride + place(i);
    store_pack(to, plus);
    store_pack(to + layout.part_offset, minus);
  }
};

template <typename T, typename R, Form form>
void run(const T* first, const T* second, const T* relevance, const double* psi, T* parts,
         double* total, const SplitLayout& layout) {
  constexpr int wide = kAccess / sizeof(T);
  const int64_t size = layout.rows * layout.columns;
  const bool aligned =
      fits(wide, sizeof(T),
           {size, layout.columns, layout.sample_stride, layout.row_stride, layout.part_offset},
           {first, second, relevance, parts});
  reduce_elementwise<wide>(
      "split_quotient",
      SplitQuotient<T, R, form>{first, second, relevance, psi, parts, layout, size}, total,
      layout.samples, size, aligned);
}

}  // namespace

template <typename T>
void split_quotient(const T* first, const T* second, const T* relevance, const double* psi,
                    T* parts, double* total, const SplitLayout& layout, Form form, Rule rule) {
  const bool absolute = form == Form::kAbsolute;
  const auto kernel =
      rule == Rule::kRap
          ? (absolute ? run<T, Rap, Form::kAbsolute> : run<T, Rap, Form::kSplit>)
          : (absolute ? run<T, RapConv, Form::kAbsolute> : run<T, RapConv, Form::kSplit>);
  kernel(first, second, relevance, psi, parts, total, layout);
}

#define RAPKERNELS_INSTANTIATE(T)                                                        \
  template void split_quotient(const T*, const T*, const T*, const double*, T*, double*, \
                               const SplitLayout&, Form, Rule);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
