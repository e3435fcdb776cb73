// Sharing ratio: what the vector over the channels of each position makes of its relevance. A task
// takes a piece of the positions of one sample, small enough to stay in the cache: norms first,
// then target by target, so that memory is passed once.
#include <array>
#include <cmath>

#include "../rules.h"
#include "targets.h"

namespace rapkernels::cpu {
namespace {

constexpr int64_t kMostPositions = 128;
constexpr int64_t kFewestPositions = 16;
constexpr int64_t kElements = 32 * kRun;  // of one operand of a task, about

template <typename T>
using OfPosition = std::array<T, kMostPositions>;

// A piece of one sample: channel c of position p is at c * channel_step + p * position_step.
struct Piece {
  int64_t positions;
  int64_t channels;
  int64_t channel_step;
  int64_t position_step;
};

// square = ||v||^2 and along = <v, b> of each position of v = values + b.
template <typename T, bool biased>
RAPKERNELS_CLONES void measure_planes(const T* values, const T* bias, const Piece& piece,
                                      double* square, double* along) {
  for (int64_t p = 0; p < piece.positions; ++p) square[p] = along[p] = 0;
  for (int64_t c = 0; c < piece.channels; ++c) {
    const T* plane = values + c * piece.channel_step;
    const T b = biased ? bias[c] : T(0);
    for (int64_t p = 0; p < piece.positions; ++p) {
      const double v = static_cast<double>(plane[p] + b);
      square[p] += v * v;
      if (biased) along[p] += v * static_cast<double>(b);
    }
  }
}

template <typename T, bool biased>
RAPKERNELS_CLONES void measure_rows(const T* values, const T* bias, const Piece& piece,
                                    double* square, double* along) {
  using V = Vector<T>;
  for (int64_t p = 0; p < piece.positions; ++p) {
    const T* row = values + p * piece.position_step;
    typename V::wide squares{}, dots{};
    double rest = 0, rest_along = 0;
    int64_t c = 0;
    for (; c + V::lanes <= piece.channels; c += V::lanes) {
      typename V::type v, b{};
      std::memcpy(&v, row + c, sizeof(v));
      if (biased) {
        std::memcpy(&b, bias + c, sizeof(b));
        v += b;
      }
      const auto wide = __builtin_convertvector(v, typename V::wide);
      squares += wide * wide;
      if (biased) dots += wide * __builtin_convertvector(b, typename V::wide);
    }
    for (; c < piece.channels; ++c) {
      const T b = biased ? bias[c] : T(0);
      const double v = static_cast<double>(row[c] + b);
      rest += v * v;
      rest_along += v * static_cast<double>(b);
    }
    for (int64_t l = 0; l < V::lanes; ++l) {
      rest += squares[l];
      rest_along += dots[l];
    }
    square[p] = rest;
    along[p] = rest_along;
  }
}

// The relevance of each position: the sum over its channels.
template <typename T>
RAPKERNELS_CLONES void sum_planes(const T* relevance, T psi, const Piece& piece, double* total) {
  for (int64_t p = 0; p < piece.positions; ++p) total[p] = 0;
  for (int64_t c = 0; c < piece.channels; ++c) {
    const T* plane = relevance + c * piece.channel_step;
    for (int64_t p = 0; p < piece.positions; ++p) {
      total[p] += static_cast<double>(shifted(plane[p], psi));
    }
  }
}

template <typename T>
RAPKERNELS_CLONES void sum_rows(const T* relevance, T psi, const Piece& piece, double* total) {
  T shifted_run[kRun];
  for (int64_t p = 0; p < piece.positions; ++p) {
    const T* row = relevance + p * piece.position_step;
    Sum<T> sum;
    for (int64_t c = 0; c < piece.channels; c += kRun) {
      const int64_t size = std::min(kRun, piece.channels - c);
      shift_run(row + c, psi, shifted_run, size);
      sum.add(shifted_run, size);
    }
    total[p] = sum.value();
  }
}

// What each channel gets: entry(v / ||v||, amount).
template <typename T, typename Form, bool biased>
RAPKERNELS_CLONES void hand_planes(const T* values, const T* bias, const T* inverse,
                                   const T* amount, const Piece& piece, T* out) {
  for (int64_t c = 0; c < piece.channels; ++c) {
    const T* plane = values + c * piece.channel_step;
    T* to = out + c * piece.channel_step;
    const T b = biased ? bias[c] : T(0);
    for (int64_t p = 0; p < piece.positions; ++p) {
      to[p] = Form::entry((plane[p] + b) * inverse[p], amount[p]);
    }
  }
}

template <typename T, typename Form, bool biased>
RAPKERNELS_CLONES void hand_rows(const T* values, const T* bias, const T* inverse, const T* amount,
                                 const Piece& piece, T* out) {
  for (int64_t p = 0; p < piece.positions; ++p) {
    const T* row = values + p * piece.position_step;
    T* to = out + p * piece.position_step;
    for (int64_t c = 0; c < piece.channels; ++c) {
      to[c] = Form::entry((row[c] + (biased ? bias[c] : T(0))) * inverse[p], amount[p]);
    }
  }
}

// The kernels of one layout.
template <typename T>
struct Layout {
  decltype(&measure_rows<T, true>) measure;
  decltype(&sum_rows<T>) sum;
  decltype(&hand_rows<T, Gradient, true>) hand;
};

template <typename T, typename Form, bool biased>
Layout<T> layout_of(bool rows) {
  if (rows) return {measure_rows<T, biased>, sum_rows<T>, hand_rows<T, Form, biased>};
  return {measure_planes<T, biased>, sum_planes<T>, hand_planes<T, Form, biased>};
}

template <typename T, typename Form>
void hand_on(const T* values, const T* bias, const double* taps, const T* relevance,
             const double* psi, T* out, double* share, double* absorbed, const VectorShape& shape) {
  const bool rows = shape.channels_last || shape.positions == 1;
  const auto [measure, sum, hand] =
      bias ? layout_of<T, Form, true>(rows) : layout_of<T, Form, false>(rows);
  const int64_t room = kElements / std::max<int64_t>(1, shape.channels) / 16 * 16;
  const int64_t piece_size = std::clamp(room, kFewestPositions, kMostPositions);
  const int64_t tasks = (shape.positions + piece_size - 1) / piece_size;
  const int64_t size = shape.channels * shape.positions;
  std::vector<double> partial(shape.targets * shape.samples * tasks);
  at::parallel_for(0, shape.samples * tasks, 1, [&](int64_t first, int64_t last) {
    OfPosition<double> square, along, total;
    OfPosition<T> inverse, amount;
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / tasks;
      const int64_t begin = (i % tasks) * piece_size;
      const Piece piece{std::min(piece_size, shape.positions - begin), shape.channels,
                        rows ? 1 : shape.positions, rows ? shape.channels : 1};
      const int64_t offset = begin * piece.position_step;
      measure(values + n * size + offset, bias, piece, square.data(), along.data());
      for (int64_t t = 0; t < shape.targets; ++t) {
        const int64_t m = t * shape.samples + n;
        sum(relevance + m * size + offset, static_cast<T>(psi_of(psi, m)), piece, total.data());
        double lost = 0;
        for (int64_t p = 0; p < piece.positions; ++p) {
          const bool reached =
              carries_vector<T>(square[p]) && (taps == nullptr || taps[begin + p] > 0);
          const double norm = std::sqrt(square[p]);
          inverse[p] = reached ? static_cast<T>(1 / norm) : T(0);
          amount[p] = reached ? static_cast<T>(Form::amount(total[p], norm)) : T(0);
          lost += reached ? 0.0 : total[p];
          if (bias) {
            const double each = taps ? taps[begin + p] : 1.0;
            share[m * shape.positions + begin + p] =
                reached ? finite_or_zero(total[p] / square[p] * along[p] / each) : 0.0;
          }
        }
        hand(values + n * size + offset, bias, inverse.data(), amount.data(), piece,
             out + m * size + offset);
        partial[m * tasks + i % tasks] = lost;
      }
    }
  });
  reduce(partial, absorbed, shape.targets * shape.samples);
}

template <typename T>
RAPKERNELS_CLONES void contribution_run(const T* x, const T* share, T* gradient, int64_t size,
                                        Measure<T>* measure) {
  if (share) {
    for (int64_t i = 0; i < size; ++i) {
      gradient[i] = finite_or_zero(x[i] * gradient[i] + share[i]);
    }
  } else {
    for (int64_t i = 0; i < size; ++i) gradient[i] = finite_or_zero(x[i] * gradient[i]);
  }
  measure->add(gradient, size);
}

// The shares of the positions of elements `begin` to `begin + size` of one sample.
template <typename T>
void spread(const double* share, const VectorShape& shape, int64_t begin, int64_t size, T* run) {
  const int64_t inner = shape.channels_last ? shape.channels : shape.positions;
  int64_t outer = begin / inner;
  int64_t rest = begin % inner;
  for (int64_t i = 0; i < size; ++i) {
    run[i] = static_cast<T>(share[shape.channels_last ? outer : rest]);
    if (++rest == inner) {
      rest = 0;
      ++outer;
    }
  }
}

}  // namespace

template <typename T>
void share_squares(const T* vector, const T* relevance, const double* psi, T* out, double* absorbed,
                   const VectorShape& shape) {
  hand_on<T, Squares>(vector, nullptr, nullptr, relevance, psi, out, nullptr, absorbed, shape);
}

template <typename T>
void sharing_quotient(const T* z, const T* bias, const double* taps, const T* relevance,
                      const double* psi, T* quotient, double* share, double* absorbed,
                      const VectorShape& shape) {
  hand_on<T, Gradient>(z, bias, taps, relevance, psi, quotient, share, absorbed, shape);
}

template <typename T>
void sharing_contribution(const T* x, const double* share, T* gradient, Statistics* statistics,
                          const VectorShape& shape) {
  const int64_t size = shape.channels * shape.positions;
  std::vector<Statistics> partial(shape.targets * shape.samples * tasks_of(size));
  for_each_target_task(shape.samples, shape.targets, size,
                       [&](int64_t n, int64_t of_target, int64_t task, int64_t begin, int64_t end) {
                         T shares[kRun];
                         Measure<T> measure;
                         for (int64_t i = begin; i < end; i += kRun) {
                           const int64_t count = std::min(kRun, end - i);
                           if (share)
                             spread(share + of_target * shape.positions, shape, i, count, shares);
                           contribution_run(x + n * size + i, share ? shares : nullptr,
                                            gradient + of_target * size + i, count, &measure);
                         }
                         partial[of_target * tasks_of(size) + task] = measure.value();
                       });
  reduce(partial, statistics, shape.targets * shape.samples);
}

#define RAPKERNELS_INSTANTIATE(T)                                                                  \
  template void share_squares(const T*, const T*, const double*, T*, double*, const VectorShape&); \
  template void sharing_quotient(const T*, const T*, const double*, const T*, const double*, T*,   \
                                 double*, double*, const VectorShape&);                            \
  template void sharing_contribution(const T*, const double*, T*, Statistics*, const VectorShape&);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(double)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
