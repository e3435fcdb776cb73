// The CPU kernels on raw pointers, at sizes around their blocks, so that sanitizers see every
// bound.
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/rounded_weight.h"
#include "kernels.h"
#include "rules.h"

using namespace rapkernels;

namespace {

template <typename T>
std::vector<T> random(int64_t size, unsigned seed, bool nonnegative = false) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(size);
  for (T& v : values) {
    const double value = normal(generator);
    v = static_cast<T>(nonnegative ? std::max(0.0, value) : value);
  }
  return values;
}

template <typename T>
Storage storage_of() {
  return sizeof(T) == 8 ? Storage::kFloat64 : Storage::kFloat32;
}

template <typename T>
double tolerance() {
  return 64 * static_cast<double>(Guard<T>::epsilon);
}

const int64_t kSizes[] = {1, 7, 8, 15, 16, 17, 1023, 1024, 1025, 16384, 16385, 40000};

template <typename T>
void gate_measures() {
  for (const int64_t size : kSizes) {
    for (const int64_t samples : {1, 3}) {
      const auto x = random<T>(samples * size, 1, true);
      auto g = random<T>(samples * size, 2);
      const auto before = g;
      std::vector<Statistics> statistics(samples);
      cpu::gate<T>(x.data(), g.data(), nullptr, g.data(), statistics.data(), samples, samples, size,
                   Gate::kProduct);
      for (int64_t n = 0; n < samples; ++n) {
        double sum = 0, count = 0, largest = 0, absolute = 0;
        for (int64_t i = n * size; i < (n + 1) * size; ++i) {
          CHECK(g[i] == x[i] * before[i]);
          sum += g[i];
          absolute += std::fabs(g[i]);
          count += g[i] != 0;
          largest = std::max(largest, static_cast<double>(std::fabs(g[i])));
        }
        CHECK_NEAR(statistics[n].sum, sum, tolerance<double>() * absolute);
        CHECK(statistics[n].count == count);
        CHECK(statistics[n].largest == largest);
      }
    }
  }
}

template <typename T>
void quotient_layouts_agree() {
  const int64_t samples = 2, channels = 5, positions = 700, size = channels * positions;
  const auto z = random<T>(samples * size, 3, true);
  const auto a = random<T>(samples * size, 4, true);
  const auto r = random<T>(samples * size, 5);
  const std::vector<double> psi{0.25, -0.5};
  std::vector<double> total(samples), total_packed(samples);
  std::vector<T> apart(2 * samples * size), packed(2 * samples * size);
  cpu::split_quotient<T>(z.data(), a.data(), r.data(), psi.data(), nullptr, {}, apart.data(),
                         total.data(), {samples, samples, 1, size, size, 0, samples * size},
                         Form::kSplit, {Rule::kRapConv, {}});
  cpu::split_quotient<T>(z.data(), a.data(), r.data(), psi.data(), nullptr, {}, packed.data(),
                         total_packed.data(),
                         {samples, samples, positions, channels, 2 * size, 2 * channels, channels},
                         Form::kSplit, {Rule::kRapConv, {}});
  for (int64_t n = 0; n < samples; ++n) {
    CHECK_NEAR(total[n], total_packed[n], 1e-9 * size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = n * size + i;
      const Quotient<T> wanted =
          RapConv::quotient(shifted(r[at], static_cast<T>(psi[n])), z[at], a[at]);
      const int64_t to = n * 2 * size + i / channels * 2 * channels + i % channels;
      CHECK_NEAR(apart[at], wanted.positive, tolerance<T>() * std::fabs(wanted.positive));
      CHECK_NEAR(apart[samples * size + at], wanted.negative,
                 tolerance<T>() * std::fabs(wanted.negative));
      CHECK(packed[to] == apart[at]);
      CHECK(packed[to + channels] == apart[samples * size + at]);
    }
  }
}

void quotients_are_rounded() {
  const int64_t samples = 2, size = 1500;
  const auto z = random<float>(samples * size, 3, true);
  const auto a = random<float>(samples * size, 4, true);
  auto r = random<float>(samples * size, 5);
  r[0] = std::numeric_limits<float>::quiet_NaN();
  r[1] = std::numeric_limits<float>::infinity();
  r[2] = std::numeric_limits<float>::max();
  std::vector<double> total(samples), total_rounded(samples);
  std::vector<float> whole(2 * samples * size);
  std::vector<c10::BFloat16> rounded(whole.size());
  const SplitLayout layout{samples, samples, 1, size, size, 0, samples * size};
  const auto run = [&](auto& parts, std::vector<double>& sums) {
    cpu::split_quotient<float>(z.data(), a.data(), r.data(), nullptr, nullptr, {}, parts.data(),
                               sums.data(), layout, Form::kSplit, {Rule::kRapConv, {}});
  };
  run(whole, total);
  run(rounded, total_rounded);
  CHECK(total[1] == total_rounded[1]);
  for (size_t i = 0; i < whole.size(); ++i) CHECK(rounded[i].x == c10::BFloat16(whole[i]).x);
}

void quotients_of_rounded_sums() {
  const int64_t samples = 2, size = 1500;
  const auto z = random<float>(samples * size, 3);
  const auto magnitudes = random<float>(samples * size, 4, true);
  const auto r = random<float>(samples * size, 5);
  std::vector<c10::BFloat16> negative(magnitudes.begin(), magnitudes.end());
  std::vector<double> total(samples);
  std::vector<c10::BFloat16> parts(2 * samples * size);
  cpu::split_quotient<float>(
      z.data(), negative.data(), r.data(), nullptr, nullptr, {}, parts.data(), total.data(),
      {samples, samples, 1, size, size, 0, samples * size}, Form::kRounded, {Rule::kRapConv, {}});
  int64_t without_positive = 0;
  for (int64_t i = 0; i < samples * size; ++i) {
    const auto n = static_cast<float>(negative[i]);
    const bool is_rounding = z[i] + n <= 0x1p-6f * n;
    without_positive += is_rounding;
    const Quotient<float> wanted = RapConv::quotient(r[i], is_rounding ? 0.0f : z[i] + n, n);
    CHECK(parts[i].x == c10::BFloat16(wanted.positive).x);
    CHECK(parts[samples * size + i].x == c10::BFloat16(wanted.negative).x);
  }
  CHECK(without_positive > 100);
  CHECK(without_positive < samples * size / 2);
}

void negative_weights_are_rounded() {
  const int64_t outputs = 3, inputs = 37, rows = 2, columns = 5;
  auto weight = random<float>(outputs * inputs * rows * columns, 6);
  weight[1] = -1.00390625f;  // between two neighbours: to the even one
  weight[2] = -std::numeric_limits<float>::infinity();
  // As PyTorch keeps it, channels last, and with the inputs outermost.
  const std::array<int64_t, 4> layouts[] = {{inputs * rows * columns, rows * columns, columns, 1},
                                            {inputs * rows * columns, 1, columns * inputs, inputs},
                                            {rows * columns, outputs * rows * columns, columns, 1}};
  for (const auto& strides : layouts) {
    std::vector<c10::BFloat16> negative(weight.size());
    cpu::round_negative_weight(weight.data(), {outputs, inputs, rows, columns}, strides,
                               negative.data());
    int64_t at = 0;
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < columns; ++x) {
          for (int64_t i = 0; i < inputs; ++i) {
            const float w =
                weight[o * strides[0] + i * strides[1] + y * strides[2] + x * strides[3]];
            CHECK(negative[at++].x == c10::BFloat16(w < 0 ? -w : 0.0f).x);
          }
        }
      }
    }
  }
}

template <typename T>
void linear_equals_messages() {
  for (const int64_t rows : {1, 3, 4, 9}) {
    for (const int64_t inputs : {1, 17, 1024, 1031}) {
      for (const int64_t outputs : {1, 8, 37}) {
        const auto x = random<T>(rows * inputs, 6);
        const auto w = random<T>(outputs * inputs, 7);
        const auto s_plus = random<T>(rows * outputs, 8);
        const auto s_minus = random<T>(rows * outputs, 9);
        std::vector<T> plus(rows * outputs), minus(rows * outputs), c(rows * inputs);
        const Storage storage = storage_of<T>();
        cpu::linear_split<T>(x.data(), w.data(), storage, plus.data(), minus.data(), rows, inputs,
                             outputs, /*nonnegative=*/false);
        cpu::linear_contribution<T>(x.data(), w.data(), storage, s_plus.data(), s_minus.data(),
                                    c.data(), rows, rows, inputs, outputs, /*nonnegative=*/false);
        for (int64_t n = 0; n < rows; ++n) {
          std::vector<double> wanted(inputs), scale(inputs);
          for (int64_t j = 0; j < outputs; ++j) {
            double up = 0, down = 0;
            for (int64_t i = 0; i < inputs; ++i) {
              const double message = static_cast<double>(w[j * inputs + i]) * x[n * inputs + i];
              (message > 0 ? up : down) += std::fabs(message);
              const double s = message > 0 ? s_plus[n * outputs + j] : s_minus[n * outputs + j];
              wanted[i] += std::fabs(message) * s;
              scale[i] += std::fabs(message * s);
            }
            CHECK_NEAR(plus[n * outputs + j], up, tolerance<T>() * (up + 1));
            CHECK_NEAR(minus[n * outputs + j], down, tolerance<T>() * (down + 1));
          }
          for (int64_t i = 0; i < inputs; ++i) {
            CHECK_NEAR(c[n * inputs + i], wanted[i], tolerance<T>() * (scale[i] + 1));
          }
        }
      }
    }
  }
}

// Overlapping windows in both layouts give the same relevance, and none is lost.
template <typename T>
void pools_agree() {
  const int64_t samples = 2, channels = 70, height = 9, width = 7, side = 4, across = 3;
  // Kernel 3, and steps of 2 from the padding on: inputs 0 to 1, 1 to 3, 3 to 5, 5 to 7.
  const Windows one{1, 1, 1, 1, 0, 1}, down{height, side, 3, 2, 1, 1},
      over{width, across, 3, 2, 0, 1};
  const auto x = random<T>(samples * channels * height * width, 10);
  const auto r = random<T>(samples * channels * side * across, 11);
  const auto last = [&](const std::vector<T>& t, int64_t positions) {
    std::vector<T> out(t.size());
    for (int64_t n = 0; n < samples; ++n)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t p = 0; p < positions; ++p)
          out[(n * positions + p) * channels + c] = t[(n * channels + c) * positions + p];
    return out;
  };
  const auto shape = [&](bool channels_last) {
    return PoolShape{samples, 1, channels, channels_last, {one, down, over}};
  };
  const auto x_last = last(x, height * width);
  const auto r_last = last(r, side * across);
  for (const bool average : {false, true}) {
    std::vector<T> out(x.size()), out_last(x.size());
    std::vector<double> absorbed(samples), absorbed_last(samples);
    if (average) {
      cpu::avg_pool<T>(x.data(), r.data(), nullptr, out.data(), absorbed.data(), shape(false),
                       Share::kAbsolute, 0);
      cpu::avg_pool<T>(x_last.data(), r_last.data(), nullptr, out_last.data(), absorbed_last.data(),
                       shape(true), Share::kAbsolute, 0);
    } else {
      cpu::max_pool<T>(x.data(), r.data(), nullptr, out.data(), absorbed.data(), shape(false),
                       true);
      cpu::max_pool<T>(x_last.data(), r_last.data(), nullptr, out_last.data(), absorbed_last.data(),
                       shape(true), true);
    }
    CHECK(last(out, height * width) == out_last);
    for (int64_t n = 0; n < samples; ++n) {
      double in = 0, whole = 0;
      for (int64_t i = 0; i < channels * side * across; ++i)
        in += r[n * channels * side * across + i];
      for (int64_t i = 0; i < channels * height * width; ++i) {
        whole += out[n * channels * height * width + i];
      }
      CHECK(absorbed[n] == 0 && absorbed_last[n] == 0);
      CHECK_NEAR(whole, in, tolerance<T>() * channels * side * across);
    }
  }
}

// Vectors in both layouts and around every block hand on the same relevance, all of it.
template <typename T>
void vectors_agree() {
  const int64_t samples = 2, targets = 3;
  const std::vector<double> psi{0.25, -0.5, 0, 1, 0.125, -2};
  for (const int64_t channels : {1, 15, 16, 17, 1025, 4097}) {
    for (const int64_t positions : {1, 15, 17, 129}) {
      const int64_t size = channels * positions;
      const auto last = [&](const std::vector<T>& t) {
        std::vector<T> out(t.size());
        for (int64_t n = 0; n < static_cast<int64_t>(t.size()) / size; ++n)
          for (int64_t c = 0; c < channels; ++c)
            for (int64_t p = 0; p < positions; ++p)
              out[(n * positions + p) * channels + c] = t[(n * channels + c) * positions + p];
        return out;
      };
      const auto v = random<T>(samples * size, 20);
      const auto r = random<T>(targets * samples * size, 21);
      std::vector<T> out(r.size()), out_last(r.size());
      std::vector<double> absorbed(targets * samples), absorbed_last(targets * samples);
      cpu::share_squares<T>(v.data(), r.data(), psi.data(), out.data(), absorbed.data(),
                            {samples, targets, channels, positions, false});
      cpu::share_squares<T>(last(v).data(), last(r).data(), psi.data(), out_last.data(),
                            absorbed_last.data(), {samples, targets, channels, positions, true});
      const auto expected = last(out);
      for (int64_t m = 0; m < targets * samples; ++m) {
        // Half a million terms of mostly one sign: a running sum in double would be too coarse.
        long double in = 0, whole = 0, magnitudes = 0;
        for (int64_t i = m * size; i < (m + 1) * size; ++i) {
          const double incoming = static_cast<double>(shifted(r[i], static_cast<T>(psi[m])));
          in += incoming;
          magnitudes += std::fabs(incoming);
          whole += out[i];
        }
        CHECK(absorbed[m] == 0 && absorbed_last[m] == 0);
        CHECK_NEAR(static_cast<double>(whole), static_cast<double>(in),
                   tolerance<T>() * magnitudes);
        for (int64_t i = m * size; i < (m + 1) * size; ++i) {
          CHECK_NEAR(out_last[i], expected[i], tolerance<T>() * magnitudes);
        }
      }
    }
  }
}

// A scaled store measures what it stored, and the pending shift brings the sum to the total.
template <typename T>
void store_and_shift() {
  for (const int64_t size : kSizes) {
    const auto values = random<T>(size, 12, true);
    std::vector<T> stored(size), relevance(size);
    const double factor = 0x1p-7, scale = 0x1p7, total = 3.0;
    Statistics statistics;
    cpu::store<T>(values.data(), &factor, stored.data(), storage_of<T>(), &statistics, 1, size);
    if (statistics.count == 0) continue;
    const double psi = (statistics.sum - total * factor) / statistics.count;
    cpu::apply_shift<T>(stored.data(), &psi, &scale, relevance.data(), Guard<T>::largest, 1, size);
    double sum = 0, absolute = 0;
    for (int64_t i = 0; i < size; ++i) {
      CHECK((relevance[i] == 0) == (values[i] == 0) || values[i] == static_cast<T>(psi * scale));
      sum += relevance[i];
      absolute += std::fabs(relevance[i]);
    }
    CHECK_NEAR(sum, total, tolerance<T>() * (absolute + total));
  }
}

template <typename T>
void all() {
  gate_measures<T>();
  quotient_layouts_agree<T>();
  linear_equals_messages<T>();
  pools_agree<T>();
  vectors_agree<T>();
  store_and_shift<T>();
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  quotients_are_rounded();
  quotients_of_rounded_sums();
  negative_weights_are_rounded();
  return report();
}
