// The fused quotient: one pass over (Z+, Z-, R) or (z, A, R) that applies the pending shift on
// load, writes S+ and S-, and sums per sample the relevance, or what a rule without shift absorbs.
#include <type_traits>

#include "../rules.h"
#include "elementwise.cuh"

namespace rapkernels::cuda {
namespace {

template <typename T, typename R, Form form>
struct SplitQuotient {
  using Reduced = Sum;
  R rule;
  const T* first;
  const T* second;
  const T* relevance;
  const double* psi;
  const T* bias;
  Channels channels;
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
    const int64_t z_at = sample_of(n, layout.period) * size + i;
    const A shift = static_cast<A>(shift_of(psi, n));
    const auto a = load<width>(first + z_at);
    const auto b = load<width>(second + z_at);
    const auto r = load<width>(relevance + n * size + i);
    Pack<A, width> offsets{};
    if constexpr (!R::shifts) offsets = load_bias<width>(bias, channels, i, size);
    Pack<T, width> plus, minus;
    for (int k = 0; k < width; ++k) {
      Quotient<A> z{accumulated(a.at[k]), accumulated(b.at[k])};
      if (form == Form::kAbsolute) z = split_absolute(z.positive, z.negative);
      const A incoming = shifted(accumulated(r.at[k]), shift);
      if constexpr (R::shifts) {
        const Quotient<A> s = R::quotient(incoming, z.positive, z.negative);
        plus.at[k] = rounded<T>(s.positive);
        minus.at[k] = rounded<T>(s.negative);
        sum.add(incoming);
      } else {
        const Shares<A> s = rule.shares(incoming, z.positive, z.negative, offsets.at[k]);
        plus.at[k] = rounded<T>(s.positive);
        minus.at[k] = rounded<T>(s.negative);
        sum.add(s.absorbed);
      }
    }
    T* to = parts + n * layout.sample_stride + place(i);
    store_pack(to, plus);
    store_pack(to + layout.part_offset, minus);
  }
};

template <typename T, typename Body>
void run(const Body& body, double* total) {
  constexpr int wide = kAccess / sizeof(T);
  const SplitLayout& layout = body.layout;
  const bool aligned =
      fits(wide, sizeof(T),
           {body.size, layout.columns, layout.sample_stride, layout.row_stride, layout.part_offset},
           {body.first, body.second, body.relevance, body.parts});
  reduce_elementwise<wide>("split_quotient", body, total, layout.samples, body.size, aligned);
}

}  // namespace

template <typename T, typename M, typename S>
void split_quotient(const T* first, const M* second, const T* relevance, const double* psi,
                    const T* bias, const Channels& channels, S* parts, double* total,
                    const SplitLayout& layout, Form form, const Rule& rule) {
  const int64_t size = layout.rows * layout.columns;
  with_rule<Acc<T>>(rule, [&](const auto& typed) {
    using R = std::decay_t<decltype(typed)>;
    if (form == Form::kAbsolute) {
      run<T>(SplitQuotient<T, R, Form::kAbsolute>{typed, first, second, relevance, psi, bias,
                                                  channels, parts, layout, size},
             total);
    } else {
      run<T>(SplitQuotient<T, R, Form::kSplit>{typed, first, second, relevance, psi, bias, channels,
                                               parts, layout, size},
             total);
    }
  });
}

#define RAPKERNELS_INSTANTIATE(T)                                                      \
  template void split_quotient(const T*, const T*, const T*, const double*, const T*,  \
                               const Channels&, T*, double*, const SplitLayout&, Form, \
                               const Rule&);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cuda
