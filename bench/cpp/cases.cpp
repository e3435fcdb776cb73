#include "cases.h"

#include <memory>
#include <utility>

#include "cpu/rounded_weight.h"
#include "kernels.h"

namespace rapkernels::bench {
namespace {

// Uniform in (-1, 1) from a fixed seed; `positive`: half of the entries 0, as after a ReLU.
enum class Sign { kAny, kPositive, kMagnitude };

class Operand {
 public:
  Operand(int64_t size, Sign sign, uint32_t seed = 1)
      : values_(std::make_shared<std::vector<float>>(size)) {
    uint32_t state = seed * 2654435761u;
    for (float& value : *values_) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<int32_t>(state)) / 2147483648.0f;
      if (sign == Sign::kPositive && value < 0) value = 0;
      if (sign == Sign::kMagnitude) value = (value < 0 ? -value : value) + 0.1f;
    }
  }
  explicit Operand(int64_t size) : values_(std::make_shared<std::vector<float>>(size)) {}

  float* data() const { return values_->data(); }
  int64_t bytes() const { return static_cast<int64_t>(values_->size() * sizeof(float)); }

 private:
  std::shared_ptr<std::vector<float>> values_;
};

// What a call reads and writes once per sample.
template <typename T>
std::shared_ptr<std::vector<T>> per_sample(int64_t samples, T value = {}) {
  return std::make_shared<std::vector<T>>(samples, value);
}

template <typename... Operands>
int64_t bytes_of(const Operands&... operands) {
  return (operands.bytes() + ...);
}

// An image of a layer.
struct Image {
  int64_t samples;
  int64_t channels;
  int64_t side;

  int64_t size() const { return channels * side * side; }
  int64_t numel() const { return samples * size(); }
};

struct Linear {
  int64_t samples;
  int64_t inputs;
  int64_t outputs;
};

Work split_weight(int64_t size) {
  const Operand weight(size, Sign::kAny), positive(size), negative(size);
  return {size, bytes_of(weight, positive, negative),
          [=] { cpu::split_weight<float>(weight.data(), positive.data(), negative.data(), size); }};
}

Work round_negative_weight(int64_t channels, int64_t side) {
  const int64_t positions = side * side, size = channels * channels * positions;
  const Operand weight(size, Sign::kAny);
  const auto negative = std::make_shared<std::vector<c10::BFloat16>>(size);
  return {size, weight.bytes() + 2 * size, [=] {
            cpu::round_negative_weight(weight.data(), {channels, channels, side, side},
                                       {channels * positions, positions, side, 1},
                                       negative->data());
          }};
}

Work rounded_quotient(const Image& image, const Rule& rule) {
  const int64_t n = image.samples, size = image.size();
  const Operand z(n * size, Sign::kAny), relevance(n * size, Sign::kAny, 3);
  const Operand magnitudes(n * size, Sign::kMagnitude, 2);
  const auto negative =
      std::make_shared<std::vector<c10::BFloat16>>(magnitudes.data(), magnitudes.data() + n * size);
  const auto parts = std::make_shared<std::vector<c10::BFloat16>>(2 * n * size);
  const auto psi = per_sample(n, 0.01), total = per_sample<double>(n);
  return {n * size, bytes_of(z, relevance) + 6 * n * size, [=] {
            cpu::split_quotient<float>(z.data(), negative->data(), relevance.data(), psi->data(),
                                       nullptr, {}, parts->data(), total->data(),
                                       {n, n, 1, size, size, 0, n * size}, Form::kRounded, rule);
          }};
}

Work split_quotient(const Image& image, Form form, const Rule& rule, bool packed) {
  const int64_t n = image.samples, size = image.size();
  const Operand first(n * size, form == Form::kSplit ? Sign::kMagnitude : Sign::kAny);
  const Operand second(n * size, Sign::kMagnitude, 2), relevance(n * size, Sign::kAny, 3);
  const Operand parts(2 * n * size), bias(image.channels, Sign::kAny, 4);
  const auto psi = per_sample(n, 0.01), total = per_sample<double>(n);
  // Channels last: one row of 2 C for each position.
  const int64_t c = image.channels, positions = image.side * image.side;
  const SplitLayout layout = packed ? SplitLayout{n, n, positions, c, 2 * size, 2 * c, c}
                                    : SplitLayout{n, n, 1, size, size, 0, n * size};
  return {n * size, bytes_of(first, second, relevance, parts), [=] {
            cpu::split_quotient<float>(first.data(), second.data(), relevance.data(), psi->data(),
                                       rule.shifts() ? nullptr : bias.data(), {c, 1}, parts.data(),
                                       total->data(), layout, form, rule);
          }};
}

Work unsplit_quotient(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand z(n * size, Sign::kAny), relevance(n * size, Sign::kAny, 2), quotient(n * size);
  const Operand bias(image.channels, Sign::kAny, 3);
  const auto psi = per_sample(n, 0.01), absorbed = per_sample<double>(n);
  return {n * size, bytes_of(z, relevance, quotient), [=] {
            cpu::unsplit_quotient<float>(z.data(), relevance.data(), psi->data(), bias.data(),
                                         {image.channels, 1}, quotient.data(), absorbed->data(), n,
                                         n, size, 1.0, 1e-6);
          }};
}

Work gate(const Image& image, Gate form) {
  const int64_t n = image.samples, size = image.size();
  const bool two = form != Gate::kProduct;
  const Operand x(n * size, form == Gate::kBySign ? Sign::kAny : Sign::kPositive);
  const Operand first(n * size, Sign::kAny, 2), second(two ? n * size : 0, Sign::kAny, 3);
  const Operand contribution(n * size);
  const auto statistics = per_sample<Statistics>(n);
  return {n * size, bytes_of(x, first, second, contribution), [=] {
            cpu::gate<float>(x.data(), first.data(), two ? second.data() : nullptr,
                             contribution.data(), statistics->data(), n, n, size, form);
          }};
}

Work measure(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand values(n * size, Sign::kAny);
  const auto statistics = per_sample<Statistics>(n);
  return {n * size, values.bytes(),
          [=] { cpu::measure<float>(values.data(), statistics->data(), n, size); }};
}

Work store(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand values(n * size, Sign::kAny), stored(n * size);
  const auto factor = per_sample(n, 0.5);
  const auto statistics = per_sample<Statistics>(n);
  return {n * size, bytes_of(values, stored), [=] {
            cpu::store<float>(values.data(), factor->data(), stored.data(), Storage::kFloat32,
                              statistics->data(), n, size);
          }};
}

Work apply_shift(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand values(n * size, Sign::kAny), relevance(n * size);
  const auto psi = per_sample(n, 0.01), scale = per_sample(n, 0.5);
  return {n * size, bytes_of(values, relevance), [=] {
            cpu::apply_shift<float>(values.data(), psi->data(), scale->data(), relevance.data(),
                                    3e38, n, size);
          }};
}

Work merge(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand a(n * size, Sign::kAny), b(n * size, Sign::kAny, 2), sum(n * size);
  const auto psi = per_sample(n, 0.01), factor = per_sample(n, 0.5);
  return {n * size, bytes_of(a, b, sum), [=] {
            cpu::merge<float>(a.data(), psi->data(), factor->data(), b.data(), psi->data(),
                              factor->data(), sum.data(), n, size);
          }};
}

Work add(const Image& image, Share share) {
  const int64_t n = image.samples, size = image.size();
  const Operand a(n * size, Sign::kPositive), b(n * size, Sign::kAny, 2);
  const Operand relevance(n * size, Sign::kAny, 3), out_a(n * size), out_b(n * size);
  const auto psi = per_sample(n, 0.01), absorbed = per_sample<double>(n);
  return {n * size, bytes_of(a, b, relevance, out_a, out_b), [=] {
            cpu::add<float>(a.data(), b.data(), relevance.data(), psi->data(), out_a.data(),
                            out_b.data(), absorbed->data(), n, 1, size, share, 0);
          }};
}

Work linear_split(const Linear& layer) {
  const auto [n, inputs, outputs] = layer;
  const Operand x(n * inputs, Sign::kPositive), weight(inputs * outputs, Sign::kAny, 2);
  const Operand positive(n * outputs), negative(n * outputs);
  return {inputs * outputs, bytes_of(x, weight, positive, negative), [=, layer = layer] {
            cpu::linear_split<float>(x.data(), weight.data(), Storage::kFloat32, positive.data(),
                                     negative.data(), layer.samples, layer.inputs, layer.outputs,
                                     true);
          }};
}

Work linear_contribution(const Linear& layer) {
  const auto [n, inputs, outputs] = layer;
  const Operand x(n * inputs, Sign::kPositive), weight(inputs * outputs, Sign::kAny, 2);
  const Operand positive(n * outputs, Sign::kAny, 3), negative(n * outputs, Sign::kAny, 4);
  const Operand contribution(n * inputs);
  return {
      inputs * outputs, bytes_of(x, weight, positive, negative, contribution), [=, layer = layer] {
        cpu::linear_contribution<float>(x.data(), weight.data(), Storage::kFloat32, positive.data(),
                                        negative.data(), contribution.data(), layer.samples,
                                        layer.samples, layer.inputs, layer.outputs, true);
      }};
}

enum class Pool { kMax, kAverage };

Work pool(const Image& image, Pool kind, int64_t kernel, int64_t stride, int64_t padding) {
  const int64_t n = image.samples, outputs = (image.side + 2 * padding - kernel) / stride + 1;
  const int64_t arrived = n * image.channels * outputs * outputs;
  const Operand x(image.numel(), Sign::kPositive), relevance(arrived, Sign::kAny, 2);
  const Operand out(image.numel());
  const auto psi = per_sample(n, 0.01), absorbed = per_sample<double>(n);
  const Windows window{image.side, outputs, kernel, stride, padding, 1};
  const PoolShape shape{n, 1, image.channels, true, {{1, 1, 1, 1, 0, 1}, window, window}};
  return {image.numel(), bytes_of(x, relevance, out), [=] {
            if (kind == Pool::kMax) {
              cpu::max_pool<float>(x.data(), relevance.data(), psi->data(), out.data(),
                                   absorbed->data(), shape, true);
            } else {
              cpu::avg_pool<float>(x.data(), relevance.data(), psi->data(), out.data(),
                                   absorbed->data(), shape, Share::kAbsolute, 0);
            }
          }};
}

Work neurons(const Image& image) {
  const Operand x(image.numel(), Sign::kPositive), stacked(3 * image.numel());
  return {image.numel(), bytes_of(x, stacked),
          [=] { cpu::neurons<float>(x.data(), stacked.data(), image.numel()); }};
}

Work signed_sums(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand relevance(n * size, Sign::kAny);
  const auto psi = per_sample(n, 0.01);
  const auto sums = per_sample<SignedSums>(n);
  return {n * size, relevance.bytes(),
          [=] { cpu::signed_sums<float>(relevance.data(), psi->data(), sums->data(), n, size); }};
}

Work equilibrium_quotient(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand messages(3 * n * size, Sign::kMagnitude), relevance(n * size, Sign::kAny, 2);
  const Operand quotients(3 * n * size);
  const auto psi = per_sample(n, 0.01), met = per_sample<double>(n);
  const auto sums = per_sample(n, SignedSums{4, -2, 0.25, 0.5});
  return {n * size, bytes_of(messages, relevance, quotients), [=] {
            cpu::equilibrium_quotient<float>(messages.data(), relevance.data(), psi->data(),
                                             sums->data(), 2.0, quotients.data(), met->data(),
                                             {n, n, size});
          }};
}

Work count_hedged(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand x(n * size, Sign::kPositive), gradient(n * size, Sign::kAny, 2);
  const auto count = per_sample<double>(n);
  return {n * size, bytes_of(x, gradient), [=] {
            cpu::count_hedged<float>(x.data(), gradient.data(), count->data(), {n, n, size});
          }};
}

Work equilibrium_contribution(const Image& image) {
  const int64_t n = image.samples, size = image.size();
  const Operand x(n * size, Sign::kPositive), gradients(3 * n * size, Sign::kAny, 2);
  const Operand contribution(n * size);
  const auto psi = per_sample(n, 0.01);
  return {n * size, bytes_of(x, gradients, contribution), [=] {
            cpu::equilibrium_contribution<float>(x.data(), gradients.data(), psi->data(),
                                                 contribution.data(), {n, n, size});
          }};
}

VectorShape vectors_of(const Image& image) {
  return {image.samples, 1, image.channels, image.side * image.side, true};
}

Work share_squares(const Image& image) {
  const int64_t n = image.samples;
  const Operand vector(image.numel(), Sign::kPositive), relevance(image.numel(), Sign::kAny, 2);
  const Operand out(image.numel());
  const auto psi = per_sample(n, 0.01), absorbed = per_sample<double>(n);
  return {image.numel(), bytes_of(vector, relevance, out), [=] {
            cpu::share_squares<float>(vector.data(), relevance.data(), psi->data(), out.data(),
                                      absorbed->data(), vectors_of(image));
          }};
}

Work sharing_quotient(const Image& image) {
  const int64_t n = image.samples, positions = image.side * image.side;
  const Operand z(image.numel(), Sign::kAny), relevance(image.numel(), Sign::kAny, 2);
  const Operand quotient(image.numel()), bias(image.channels, Sign::kAny, 3);
  const auto taps = per_sample(positions, 9.0), share = per_sample<double>(n * positions);
  const auto psi = per_sample(n, 0.01), absorbed = per_sample<double>(n);
  return {image.numel(), bytes_of(z, relevance, quotient), [=] {
            cpu::sharing_quotient<float>(z.data(), bias.data(), taps->data(), relevance.data(),
                                         psi->data(), quotient.data(), share->data(),
                                         absorbed->data(), vectors_of(image));
          }};
}

Work sharing_contribution(const Image& image) {
  const int64_t n = image.samples, positions = image.side * image.side;
  const Operand x(image.numel(), Sign::kPositive), gradient(image.numel(), Sign::kAny, 2);
  const auto share = per_sample(n * positions, 0.01);
  const auto statistics = per_sample<Statistics>(n);
  return {image.numel(), bytes_of(x, gradient, gradient), [=] {
            cpu::sharing_contribution<float>(x.data(), share->data(), gradient.data(),
                                             statistics->data(), vectors_of(image));
          }};
}

}  // namespace

std::vector<Case> cases(Scale scale) {
  const bool layers = scale == Scale::kLayers;
  const Image wide = layers ? Image{4, 64, 224} : Image{2, 16, 48};         // VGG-16, conv1_2
  const Image block = layers ? Image{4, 256, 56} : Image{2, 32, 24};        // ResNet-50, layer1
  const Image early = layers ? Image{4, 64, 112} : Image{2, 16, 48};        // ResNet-50, maxpool
  const Image last = layers ? Image{4, 2048, 7} : Image{2, 256, 7};         // ResNet-50, avgpool
  const Linear fc = layers ? Linear{4, 25088, 4096} : Linear{4, 2048, 64};  // VGG-16, fc6
  const Linear one = {1, fc.inputs, fc.outputs};
  const int64_t channels = layers ? 512 : 32;  // VGG-16, conv5
  const Rule rap{Rule::kRap, {}}, rap_conv{Rule::kRapConv, {}};
  const Rule alpha_beta{Rule::kAlphaBeta, {2, 1, 1e-6}}, gamma{Rule::kGamma, {0.25, 1e-6}};
  return {
      {"split_weight", [=] { return split_weight(channels * channels * 9); }},
      {"round_negative_weight/3x3", [=] { return round_negative_weight(channels, 3); }},
      {"round_negative_weight/1x1", [=] { return round_negative_weight(channels, 1); }},
      {"split_quotient/rap_conv/absolute",
       [=] { return split_quotient(wide, Form::kAbsolute, rap_conv, false); }},
      {"split_quotient/rap_conv/split/packed",
       [=] { return split_quotient(wide, Form::kSplit, rap_conv, true); }},
      {"split_quotient/rap/split", [=] { return split_quotient(wide, Form::kSplit, rap, false); }},
      {"split_quotient/alpha_beta/absolute",
       [=] { return split_quotient(wide, Form::kAbsolute, alpha_beta, false); }},
      {"split_quotient/gamma/absolute",
       [=] { return split_quotient(wide, Form::kAbsolute, gamma, false); }},
      {"split_quotient/rap_conv/rounded", [=] { return rounded_quotient(wide, rap_conv); }},
      {"unsplit_quotient", [=] { return unsplit_quotient(wide); }},
      {"gate/product", [=] { return gate(wide, Gate::kProduct); }},
      {"gate/sum", [=] { return gate(wide, Gate::kSum); }},
      {"gate/by_sign", [=] { return gate(wide, Gate::kBySign); }},
      {"measure", [=] { return measure(wide); }},
      {"store", [=] { return store(wide); }},
      {"apply_shift", [=] { return apply_shift(wide); }},
      {"merge", [=] { return merge(block); }},
      {"add/absolute", [=] { return add(block, Share::kAbsolute); }},
      {"add/ratio", [=] { return add(block, Share::kRatio); }},
      {"linear_split/batch_1", [=] { return linear_split(one); }},
      {"linear_split/batch_4", [=] { return linear_split(fc); }},
      {"linear_contribution/batch_1", [=] { return linear_contribution(one); }},
      {"linear_contribution/batch_4", [=] { return linear_contribution(fc); }},
      {"max_pool/2x2", [=] { return pool(wide, Pool::kMax, 2, 2, 0); }},
      {"max_pool/3x3", [=] { return pool(early, Pool::kMax, 3, 2, 1); }},
      {"avg_pool/2x2", [=] { return pool(wide, Pool::kAverage, 2, 2, 0); }},
      {"avg_pool/7x7", [=] { return pool(last, Pool::kAverage, 7, 7, 0); }},
      {"neurons", [=] { return neurons(wide); }},
      {"signed_sums", [=] { return signed_sums(wide); }},
      {"equilibrium_quotient", [=] { return equilibrium_quotient(wide); }},
      {"count_hedged", [=] { return count_hedged(wide); }},
      {"equilibrium_contribution", [=] { return equilibrium_contribution(wide); }},
      {"share_squares", [=] { return share_squares(early); }},
      {"sharing_quotient", [=] { return sharing_quotient(wide); }},
      {"sharing_contribution", [=] { return sharing_contribution(wide); }},
  };
}

}  // namespace rapkernels::bench
