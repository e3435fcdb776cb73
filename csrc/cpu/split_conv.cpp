// Split convolutions by AVX-512. The 16 lanes of a register are 16 positions that meet the same
// weights: samples, and where those are few, segments of the image. A weight is then a scalar, and
// its sign chooses the part that it is multiplied with: an address, which costs nothing. A sum is
// added up in the same order whatever the lanes, the blocks and the threads are.
#include "split_conv.h"

#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 10 && !defined(__clang__)

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "split_conv_pass.h"
// Compiled for AVX-512, and all that follows.
#include "split_conv_lanes.h"
#include "split_conv_pack.h"
#include "split_conv_tile.h"

namespace rapkernels::cpu {
namespace {

constexpr double kPackCycles = 7;           // of a register, where a product takes one
constexpr int64_t kChannels = 16;           // of the source, packed at a time
constexpr int64_t kSumsBytes = 256 * 1024;  // that stay in the second-level cache

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes) : data_(c10::GetCPUAllocator()->allocate(bytes)) {}

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  c10::DataPtr data_;
};

// Of 16 channels by 16 results at one position of the kernel; 0 beyond the last ones.
struct WeightBlock {
  alignas(kLine) float w[kChannels][kLanes] = {};
};

// The results of one phase of both axes.
class Phase {
 public:
  Phase(const Pass& pass, int64_t row, int64_t column)
      : pass_(pass),
        phases_{row, column},
        row_taps_(pass.axes[0].taps[row]),
        column_taps_(pass.axes[1].taps[column]),
        shifts_{shifts_of(row_taps_), shifts_of(column_taps_)},
        taps_(static_cast<int64_t>(row_taps_.size() * column_taps_.size())),
        lanes_(choose_lanes(pass.samples, pass.axes[0].positions(row),
                            pass.axes[1].positions(column))) {
    per_word_ = pass.source == Source::kRounded ? 2 : 1;
    units_ = divide_up(std::min(kChannels, pass.channels), per_word_);
    planes_ = pass.parts() * pass.axes[0].source_step * pass.axes[1].source_step;
    if (pass.source == Source::kRounded) planes_ *= 2;
    choose_items();
    find_offsets();
    if (pass.source == Source::kPositive) {
      list_weights();
    } else {
      pack_weights();
    }
  }

  void run() const {
    at::parallel_for(0, groups_ * bands_ * strips_ * blocks_, 1, [&](int64_t begin, int64_t end) {
      const Buffer planes(units_ * unit_);
      const Buffer sums((pass_.in_blocks ? 2 : 1) * at_once_ * stride_of_sums() *
                        static_cast<int64_t>(sizeof(float)));
      std::vector<int64_t> pixels(source_phases() * rows_ * columns_ * kLanes);
      std::vector<Row> rows(at_once_);
      for (int64_t i = begin; i < end; ++i) {
        // Neighbours share what they pack: blocks of results vary fastest.
        const Item item{i / (blocks_ * strips_ * bands_),
                        i / (blocks_ * strips_) % bands_ * tiles_ * lanes_.tile.rows,
                        i / blocks_ % strips_ * lanes_.tile.columns, i % blocks_ * at_once_};
        run(item, planes.as<char>(), sums.as<float>(), pixels, rows);
      }
    });
  }

 private:
  // A group of samples, the first row and column in each segment, the first channel of the results.
  struct Item {
    int64_t group;
    int64_t top;
    int64_t left;
    int64_t begin;
  };

  int64_t source_phases() const { return pass_.axes[0].source_step * pass_.axes[1].source_step; }

  // The items that cost the least, of those whose sums fit the cache.
  void choose_items() {
    const Tile& tile = lanes_.tile;
    const int64_t wholes = divide_up(pass_.results, kChannels);
    const int64_t high = lanes_.height / tile.rows;
    const int64_t threads = at::get_num_threads();
    groups_ = divide_up(pass_.samples, lanes_.samples);
    strips_ = lanes_.width / tile.columns;
    columns_ = tile.columns + shifts_[1].length();
    double least = std::numeric_limits<double>::infinity();
    for (int64_t blocks = 1; blocks <= wholes; ++blocks) {
      const int64_t at_once = divide_up(wholes, blocks) * kChannels;
      const int64_t fitting = kSumsBytes / (at_once * pass_.lists() * tile.size() * kLine);
      if (fitting == 0 && blocks < wholes) continue;
      for (int64_t bands = divide_up(high, std::clamp<int64_t>(fitting, 1, high)); bands <= high;
           ++bands) {
        const int64_t tiles = divide_up(high, bands);
        const int64_t items =
            groups_ * strips_ * divide_up(high, tiles) * divide_up(wholes * kChannels, at_once);
        const int64_t packed = (tiles * tile.rows + shifts_[0].length()) * columns_ * planes_;
        const double item =
            kPackCycles * static_cast<double>(packed) +
            static_cast<double>(std::min(at_once, pass_.results) * tiles * tile.size() * taps_);
        const double cost = item * static_cast<double>(divide_up(items, threads));
        if (cost >= least) continue;
        least = cost;
        at_once_ = at_once;
        tiles_ = tiles;
        bands_ = divide_up(high, tiles);
        blocks_ = divide_up(wholes * kChannels, at_once);
      }
    }
    rows_ = tiles_ * tile.rows + shifts_[0].length();
    // Planes an even number of lines apart would meet in few sets of the cache.
    plane_ = ((rows_ * columns_) | 1) * kLine;
    unit_ = planes_ * plane_;
    const int64_t read = planes_ * (tile.rows + shifts_[0].length()) * columns_ * kLine;
    block_ =
        divide_up(units_, divide_up(units_, std::clamp<int64_t>(planes_bytes() / read, 1, units_)));
  }

  void find_offsets() {
    for (int64_t unit = 0; unit < units_; ++unit) {
      for (const Tap& row : row_taps_) {
        for (const Tap& column : column_taps_) {
          const int64_t phase = row.phase * pass_.axes[1].source_step + column.phase;
          const int64_t line =
              (row.shift - shifts_[0].low) * columns_ + column.shift - shifts_[1].low;
          offsets_.push_back(static_cast<int32_t>(unit * unit_ + phase * plane_ + line * kLine));
        }
      }
    }
  }

  // The weights of a result and 16 channels, in the order of offsets_.
  void gather_weights(int64_t channel, int64_t result, std::vector<float>& weights) const {
    const auto& strides = pass_.strides;
    const int64_t channels = std::min(kChannels, pass_.channels - channel);
    const float* in = pass_.weight + result * strides[1] + channel * strides[0];
    std::fill(weights.begin(), weights.end(), 0.0f);
    float* out = weights.data();
    for (int64_t c = 0; c < channels; ++c, in += strides[0]) {
      for (const Tap& row : row_taps_) {
        for (const Tap& column : column_taps_) {
          *out++ = in[row.index * strides[2] + column.index * strides[3]];
        }
      }
    }
  }

  // words_[block of channels][block of units][result][unit][tap], as they are read.
  void pack_weights() {
    const int64_t results = divide_up(pass_.results, kChannels);
    const int64_t channels = divide_up(pass_.channels, kChannels);
    words_ =
        Buffer(channels * pass_.results * units_ * taps_ * static_cast<int64_t>(sizeof(int32_t)));
    at::parallel_for(0, channels * results, 4, [&](int64_t begin, int64_t end) {
      std::vector<WeightBlock> blocks(taps_);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t channel = i / results * kChannels;
        const int64_t result = i % results * kChannels;
        read_weights(channel, result, blocks);
        for (int64_t tap = 0; tap < taps_; ++tap) pack_tap(blocks[tap], channel, result, tap);
      }
    });
  }

  // 16 channels by 16 results at each position of the kernel, read in the order of the memory:
  // once per position, rows that are a large power of two apart push each other out of the cache.
  void read_weights(int64_t channel, int64_t result, std::vector<WeightBlock>& blocks) const {
    const int64_t channels = std::min(kChannels, pass_.channels - channel);
    const int64_t results = std::min(kChannels, pass_.results - result);
    const auto& strides = pass_.strides;
    const auto each_tap = [&](const auto& body) {
      WeightBlock* block = blocks.data();
      for (const Tap& row : row_taps_) {
        for (const Tap& column : column_taps_) {
          body(row.index * strides[2] + column.index * strides[3], (block++)->w);
        }
      }
    };
    for (int64_t c = 0; c < channels; ++c) {
      const float* in = pass_.weight + (channel + c) * strides[0] + result * strides[1];
      if (strides[1] == 1) {
        each_tap([&](int64_t at, auto& w) {
          _mm512_store_ps(w[c], _mm512_maskz_loadu_ps(first(results), in + at));
        });
        continue;
      }
      for (int64_t o = 0; o < results; ++o, in += strides[1]) {
        each_tap([&](int64_t at, auto& w) { w[c][o] = in[at]; });
      }
    }
    // The second of a pair, which the block before has left.
    if (channels < kChannels) {
      each_tap([&](int64_t, auto& w) { _mm512_store_ps(w[channels], _mm512_setzero_ps()); });
    }
  }

  void pack_tap(const WeightBlock& block, int64_t channel, int64_t result, int64_t tap) {
    const int64_t channels = std::min(kChannels, pass_.channels - channel);
    const int64_t results = std::min(kChannels, pass_.results - result);
    // Channels beyond the last one are never read, but as the second of a pair.
    for (int64_t unit = 0; unit < divide_up(channels, per_word_); ++unit) {
      alignas(kLine) int32_t words[kLanes];
      const __m512 low = _mm512_load_ps(block.w[unit * per_word_]);
      _mm512_store_si512(
          words, per_word_ == 1
                     ? _mm512_castps_si512(low)
                     : interleaved(rounded(low), rounded(_mm512_load_ps(block.w[2 * unit + 1]))));
      const int64_t from = unit / block_ * block_;
      const int64_t size = words_of(from);
      int32_t* out =
          words_.as<int32_t>() + first_word(channel, result, from) + (unit - from) * taps_ + tap;
      for (int64_t o = 0; o < results; ++o) out[o * size] = words[o];
    }
  }

  // Of a result, in the block of units that begins with `from`.
  int64_t words_of(int64_t from) const { return std::min(block_, units_ - from) * taps_; }

  int64_t first_word(int64_t channel, int64_t result, int64_t from) const {
    return (channel / kChannels * units_ + from) * taps_ * pass_.results + result * words_of(from);
  }

  // words_ and listed_, their offsets: the positive weights of
  // [block of channels][block of units][result], which begin at starts_.
  void list_weights() {
    const int64_t lists = divide_up(pass_.channels, kChannels) * pass_.results;
    const int64_t blocks = divide_up(units_, block_);
    starts_.assign(lists * blocks + 1, 0);
    const auto each_block = [&](const auto& body) {
      at::parallel_for(0, lists, 64, [&](int64_t begin, int64_t end) {
        std::vector<float> weights(kChannels * taps_);
        for (int64_t i = begin; i < end; ++i) {
          gather_weights(i / pass_.results * kChannels, i % pass_.results, weights);
          for (int64_t block = 0; block < blocks; ++block) {
            const int64_t at = block * block_ * taps_;
            const int64_t size = std::min(block_ * taps_, units_ * taps_ - at);
            body(i, first_list(i / pass_.results, block) + i % pass_.results, weights.data() + at,
                 offsets_.data() + at, size);
          }
        }
      });
    };
    std::vector<uint8_t> negative(lists);
    each_block(
        [&](int64_t i, int64_t list, const float* weights, const int32_t* offsets, int64_t size) {
          starts_[list + 1] = list_positive(weights, offsets, size, nullptr, nullptr);
          if (std::any_of(weights, weights + size, [](float w) { return w < 0; })) negative[i] = 1;
        });
    mixed_.assign(divide_up(pass_.results, kChannels), 0);
    for (int64_t i = 0; i < lists; ++i) {
      const int64_t result = i % pass_.results;
      mixed_[result / kChannels] |= static_cast<uint16_t>(negative[i] << (result % kChannels));
    }
    std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
    words_ = Buffer(starts_.back() * static_cast<int64_t>(sizeof(int32_t)));
    listed_ = Buffer(starts_.back() * static_cast<int64_t>(sizeof(int32_t)));
    each_block(
        [&](int64_t, int64_t list, const float* weights, const int32_t* offsets, int64_t size) {
          list_positive(weights, offsets, size, words_.as<int32_t>() + starts_[list],
                        listed_.as<int32_t>() + starts_[list]);
        });
  }

  int64_t first_list(int64_t channel_block, int64_t block) const {
    return (channel_block * divide_up(units_, block_) + block) * pass_.results;
  }

  void run(const Item& item, char* planes, float* sums, std::vector<int64_t>& pixels,
           std::vector<Row>& rows) const {
    const int64_t tiles = std::min(tiles_, (lanes_.height - item.top) / lanes_.tile.rows);
    const int64_t results = std::min(at_once_, pass_.results - item.begin);
    find_pixels(item, pixels);
    const int64_t size = results * stride_of_sums();
    float* totals = pass_.in_blocks ? sums + at_once_ * stride_of_sums() : sums;
    std::memset(totals, 0, size * sizeof(float));
    for (int64_t c = 0; c < pass_.channels; c += kChannels) {
      pack(pixels, c, planes);
      if (pass_.in_blocks) std::memset(sums, 0, size * sizeof(float));
      const int64_t units = divide_up(std::min(kChannels, pass_.channels - c), per_word_);
      for (int64_t from = 0; from < units; from += block_) {
        for (int64_t t = 0; t < tiles; ++t) {
          const char* base = planes + t * lanes_.tile.rows * columns_ * kLine;
          float* out = sums + t * lanes_.tile.size() * kLanes;
          if (pass_.source == Source::kPositive) {
            add_listed(c, item.begin, results, from / block_, base, out, rows);
          } else {
            add(c, item.begin, results, from, std::min(block_, units - from), base, out, rows);
          }
        }
      }
      if (pass_.in_blocks) {
        for (int64_t i = 0; i < size; ++i) totals[i] += sums[i];
      }
    }
    for (int64_t list = 0; list < pass_.lists(); ++list) unpack(item, tiles, results, list, totals);
  }

  // From the sums of one channel of the results to those of the next.
  int64_t stride_of_sums() const { return pass_.lists() * tiles_ * lanes_.tile.size() * kLanes; }

  void add(int64_t channel, int64_t first, int64_t results, int64_t from, int64_t units,
           const char* base, float* out, std::vector<Row>& rows) const {
    const auto accumulate = per_word_ == 2 ? lanes_.tile.pair : lanes_.tile.single;
    const int64_t opposite = source_phases() * plane_;
    const int64_t last = (pass_.source == Source::kRounded ? 3 : 1) * opposite;
    const int32_t* words = words_.as<int32_t>() + first_word(channel, first, from);
    for (int64_t list = 0; list < pass_.lists(); ++list) {
      for (int64_t o = 0; o < results; ++o) {
        rows[o] = {words + o * words_of(from), offsets_.data() + from * taps_, units * taps_,
                   out + o * stride_of_sums()};
      }
      accumulate(rows.data(), results, base + list * last, columns_ * kLine,
                 list == 0 ? opposite : -opposite);
      out += tiles_ * lanes_.tile.size() * kLanes;
    }
  }

  void add_listed(int64_t channel, int64_t first, int64_t results, int64_t block, const char* base,
                  float* out, std::vector<Row>& rows) const {
    const int64_t* start = starts_.data() + first_list(channel / kChannels, block) + first;
    int64_t count = 0;
    for (int64_t o = 0; o < results; ++o, ++start, out += stride_of_sums()) {
      const int64_t size = start[1] - *start;
      if (size == 0) continue;
      rows[count++] = {words_.as<int32_t>() + *start, listed_.as<int32_t>() + *start, size, out};
    }
    if (count > 0) lanes_.tile.single(rows.data(), count, base, columns_ * kLine, 0);
  }

  // Where the lanes of each position of the planes are in the parts of the source, -1 outside.
  void find_pixels(const Item& item, std::vector<int64_t>& pixels) const {
    const Axis& rows = pass_.axes[0];
    const Axis& columns = pass_.axes[1];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t sample = item.group * lanes_.samples + lane / (lanes_.rows * lanes_.columns);
      const int64_t top =
          lane / lanes_.columns % lanes_.rows * lanes_.height + item.top + shifts_[0].low;
      const int64_t left = lane % lanes_.columns * lanes_.width + item.left + shifts_[1].low;
      int64_t at = lane;
      for (int64_t phase = 0; phase < source_phases(); ++phase) {
        const int64_t y0 = top * rows.source_step + phase / columns.source_step;
        const int64_t x0 = left * columns.source_step + phase % columns.source_step;
        for (int64_t j = 0; j < rows_; ++j) {
          const int64_t y = y0 + j * rows.source_step;
          const bool inside = sample < pass_.samples && y >= 0 && y < rows.sources;
          for (int64_t i = 0; i < columns_; ++i, at += kLanes) {
            const int64_t x = x0 + i * columns.source_step;
            const int64_t pixel = (sample * rows.sources + y) * columns.sources + x;
            const bool is_source = inside && x >= 0 && x < columns.sources;
            pixels[at] = is_source ? pixel * pass_.channels : -1;
          }
        }
      }
    }
  }

  // Sixteen channels of the source from `begin` on.
  void pack(const std::vector<int64_t>& pixels, int64_t begin, char* planes) const {
    const int64_t positions = rows_ * columns_;
    const int64_t channels = pass_.channels - begin;
    if (pass_.source == Source::kRounded) {
      const auto* up = static_cast<const c10::BFloat16*>(pass_.in[0]) + begin;
      const auto* down = static_cast<const c10::BFloat16*>(pass_.in[1]) + begin;
      pack_pairs(up, down, channels, pixels.data(), positions, planes, plane_, unit_);
      return;
    }
    // planes[channel][part][phase][position]
    for (int64_t part = 0; part < pass_.parts(); ++part) {
      const auto* in = static_cast<const float*>(pass_.in[part]) + begin;
      for (int64_t phase = 0; phase < source_phases(); ++phase) {
        const int64_t* of_phase = pixels.data() + phase * positions * kLanes;
        char* out = planes + (part * source_phases() + phase) * plane_;
        if (part == 0) {
          pack_channels<false>(in, channels, of_phase, positions, out, unit_);
        } else {
          // The weights that it meets are negative.
          pack_channels<true>(in, channels, of_phase, positions, out, unit_);
        }
      }
    }
  }

  void unpack(const Item& item, int64_t tiles, int64_t results, int64_t list,
              const float* sums) const {
    const Axis& rows = pass_.axes[0];
    const Axis& columns = pass_.axes[1];
    const Tile& tile = lanes_.tile;
    sums += list * tiles_ * tile.size() * kLanes;
    for (int64_t p = 0; p < tiles * tile.size(); ++p, sums += kLanes) {
      const int64_t top = item.top + p / tile.columns;
      const int64_t left = item.left + p % tile.columns;
      int64_t pixels[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t sample = item.group * lanes_.samples + lane / (lanes_.rows * lanes_.columns);
        const int64_t segment = lane / lanes_.columns % lanes_.rows;
        const int64_t y = (segment * lanes_.height + top) * rows.result_step + phases_[0];
        const int64_t x =
            (lane % lanes_.columns * lanes_.width + left) * columns.result_step + phases_[1];
        const bool inside = sample < pass_.samples && y < rows.results && x < columns.results;
        const int64_t pixel = (sample * rows.results + y) * columns.results + x;
        pixels[lane] = inside ? pixel * pass_.results + item.begin : -1;
      }
      for (int64_t o = 0; o < results; o += kChannels) {
        __m512 v[16];
#pragma GCC unroll 16
        for (int c = 0; c < 16; ++c) {
          v[c] = _mm512_load_ps(sums + std::min(o + c, results - 1) * stride_of_sums());
        }
        transpose(v);
        const __mmask16 mask = first(results - o);
#pragma GCC unroll 16
        for (int l = 0; l < 16; ++l) {
          if (pixels[l] >= 0) store(pixels[l] + o, mask, (item.begin + o) / kChannels, list, v[l]);
        }
      }
    }
  }

  void store(int64_t at, __mmask16 mask, int64_t channels, int64_t list, __m512 v) const {
    if (pass_.z != nullptr) {
      // Without negative weights A is z, and what their two roundings leave of Z- would be noise.
      const __m512 z = _mm512_maskz_loadu_ps(mask, pass_.z + at);
      v = _mm512_mask_sub_ps(z, mixed_[channels], _mm512_add_ps(v, v), z);
    }
    _mm512_mask_storeu_ps(pass_.out[list] + at, mask, list == 0 ? v : negated(v));
  }

  const Pass& pass_;
  std::array<int64_t, 2> phases_;
  const std::vector<Tap>& row_taps_;
  const std::vector<Tap>& column_taps_;
  std::array<Range, 2> shifts_;
  int64_t taps_;
  Lanes lanes_;
  int64_t per_word_;  // weights; as many channels are a unit of the source
  int64_t units_;     // of a block of channels
  int64_t planes_;    // of a unit
  int64_t groups_;    // of samples
  int64_t bands_;     // of rows of a segment
  int64_t strips_;    // of columns of a segment
  int64_t blocks_;    // of channels of the results
  int64_t at_once_;   // channels of a block
  int64_t tiles_;     // of an item, one below the other
  int64_t rows_;      // of a plane
  int64_t columns_;
  int64_t plane_;  // bytes
  int64_t unit_;   // bytes
  int64_t block_;  // units whose planes fit the first-level cache
  std::vector<int32_t> offsets_;
  Buffer words_;
  Buffer listed_;
  std::vector<int64_t> starts_;
  std::vector<uint16_t> mixed_;  // a bit for each result that has negative weights
};

void run(const Pass& pass) {
  const auto& axes = pass.axes;
  bool is_complete = true;
  for (int64_t y = 0; y < axes[0].phases(); ++y) {
    for (int64_t x = 0; x < axes[1].phases(); ++x) {
      is_complete = is_complete && !axes[0].taps[y].empty() && !axes[1].taps[x].empty();
    }
  }
  if (!is_complete) {
    // Nothing reaches the positions of a phase without taps.
    const int64_t size = pass.samples * axes[0].results * axes[1].results * pass.results;
    for (float* out : pass.out) {
      if (out != nullptr) std::fill_n(out, size, 0.0f);
    }
  }
  for (int64_t y = 0; y < axes[0].phases(); ++y) {
    for (int64_t x = 0; x < axes[1].phases(); ++x) {
      if (!axes[0].taps[y].empty() && !axes[1].taps[x].empty()) Phase(pass, y, x).run();
    }
  }
}

}  // namespace

#pragma GCC diagnostic pop
#pragma GCC pop_options

namespace {

bool has_instructions(bool bfloat16) {
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  static const bool has_bfloat16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  return bfloat16 ? has_bfloat16 : has_avx512;
}

// Whether offsets in the planes of an item fit their type. Its sums in the cache are of at most 85
// rows, as tiles have 3 columns and more, and of 16 columns.
bool has_small_planes(const SplitConv& conv) {
  const auto beyond = [](const SplitAxis& axis) {
    return (axis.kernel - 1) * axis.dilation / axis.step + 1;
  };
  const int64_t plane = (85 + beyond(conv.axes[0])) * (16 + beyond(conv.axes[1])) * kLine;
  const int64_t forward = conv.axes[0].step * conv.axes[1].step * std::min(kChannels, conv.inputs);
  const int64_t backward = std::min(kChannels, conv.outputs);
  return 2 * std::max(forward, backward) * plane <= std::numeric_limits<int32_t>::max();
}

}  // namespace

bool runs_split_conv(const SplitConv& conv, bool bfloat16) {
  return has_instructions(bfloat16) && has_small_planes(conv) && conv.inputs >= kChannels &&
         conv.outputs >= kChannels;
}

bool runs_split_zbox(const SplitConv& conv) {
  return has_instructions(/*bfloat16=*/false) && has_small_planes(conv);
}

void split_conv_forward(const SplitConv& conv, const float* x, const float* z, int64_t samples,
                        float* a) {
  Pass pass = forward_pass(conv, Source::kPositive, {x, nullptr}, samples, a);
  pass.z = z;
  run(pass);
}

void split_conv_sums(const SplitConv& conv, const float* up, const float* down, int64_t samples,
                     float* z) {
  run(forward_pass(conv, Source::kParts, {up, down}, samples, z));
}

void split_conv_positive_transposed(const SplitConv& conv, const float* s, int64_t samples,
                                    float* out) {
  Pass pass = backward_pass(conv, Source::kPositive, {s, nullptr}, samples, {out, nullptr});
  pass.in_blocks = true;
  run(pass);
}

template <typename S>
void split_conv_backward(const SplitConv& conv, const S* positive, const S* negative,
                         int64_t samples, float* to_positive, float* to_negative) {
  const Source source = std::is_same_v<S, float> ? Source::kParts : Source::kRounded;
  run(backward_pass(conv, source, {positive, negative}, samples, {to_positive, to_negative}));
}

}  // namespace rapkernels::cpu

#else

namespace rapkernels::cpu {

bool runs_split_conv(const SplitConv&, bool) { return false; }
bool runs_split_zbox(const SplitConv&) { return false; }
void split_conv_forward(const SplitConv&, const float*, const float*, int64_t, float*) {}
void split_conv_sums(const SplitConv&, const float*, const float*, int64_t, float*) {}
void split_conv_positive_transposed(const SplitConv&, const float*, int64_t, float*) {}
template <typename S>
void split_conv_backward(const SplitConv&, const S*, const S*, int64_t, float*, float*) {}

}  // namespace rapkernels::cpu

#endif

namespace rapkernels::cpu {

#define RAPKERNELS_INSTANTIATE(S) \
  template void split_conv_backward(const SplitConv&, const S*, const S*, int64_t, float*, float*);
RAPKERNELS_INSTANTIATE(float)
RAPKERNELS_INSTANTIATE(c10::BFloat16)
#undef RAPKERNELS_INSTANTIATE

}  // namespace rapkernels::cpu
