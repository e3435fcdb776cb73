// The windows of pools: which outputs read an input must be the inverse of which inputs an output
// reads, and what stands in the state of a sample must follow from what was measured.
#include <initializer_list>

#include "check.h"
#include "settle.h"
#include "windows.h"

using namespace rapkernels;

namespace {

void inverse(const Windows& w) {
  for (int64_t i = 0; i < w.inputs; ++i) {
    for (int64_t o = 0; o < w.outputs; ++o) {
      bool read = false;
      for (int64_t k = w.begin(o); k < w.end(o); k += w.is_adaptive() ? 1 : w.step) {
        CHECK(k >= 0 && k < w.inputs);
        read = read || k == i;
      }
      const bool found = o >= w.first(i) && o <= w.last(i) && w.reads(o, i);
      CHECK(found == read);
    }
  }
}

void fixed_windows() {
  for (const int64_t inputs : {1, 2, 5, 9, 12}) {
    for (const int64_t kernel : {1, 2, 3, 4}) {
      for (const int64_t stride : {1, 2, 3, 5}) {
        for (int64_t padding = 0; 2 * padding <= kernel; ++padding) {
          for (const int64_t step : {1, 2, 3}) {
            const int64_t room = inputs + 2 * padding - step * (kernel - 1) - 1;
            if (room < 0) continue;
            for (const int64_t more : {0, 1}) {  // as ceil_mode may add
              const int64_t outputs = room / stride + 1 + more;
              if ((outputs - 1) * stride >= inputs + padding) continue;
              inverse({inputs, outputs, kernel, stride, padding, step});
            }
          }
        }
      }
    }
  }
}

void adaptive_windows() {
  for (int64_t inputs = 1; inputs < 13; ++inputs) {
    for (int64_t outputs = 1; outputs < 15; ++outputs) inverse({inputs, outputs, 0, 0, 0, 1});
  }
}

void states() {
  const double total = 6, none = 0;
  // Within the safe range nothing is scaled, and the shift brings the sum to the total.
  const Statistics usual{10, 4, 8};
  CHECK(storage_factor(usual, &total, Storage::kFloat32, false) == 1.0);
  Settled state = settled(usual, &total, 1.0, 2.0);
  CHECK(state.psi == 1.0);
  CHECK(state.scale == 2.0);
  CHECK(state.absorbed == 0.0);
  // A power of two is taken out of what is too large or stored narrowly.
  CHECK(storage_factor({0, 1, 0x1p30}, nullptr, Storage::kFloat32, false) == 0x1p-30);
  CHECK(storage_factor({0, 1, 0x1.8p-30}, nullptr, Storage::kFloat64, false) == 0x1p30);
  CHECK(storage_factor({0, 1, 8}, nullptr, Storage::kFloat16, true) == 0x1p11);
  CHECK(storage_factor({0, 1, 8}, nullptr, Storage::kBFloat16, true) == 0x1p-3);
  CHECK(settled(usual, &total, 0.5, 2.0).scale == 4.0);
  // Without a contribution the total is absorbed, in true relevance.
  state = settled({0, 0, 0}, &total, 1.0, 2.0);
  CHECK(state.psi == 0.0);
  CHECK(state.absorbed == 12.0);
  CHECK(settled({0, 0, 0}, nullptr, 1.0, 2.0).absorbed == 0.0);
  CHECK(storage_factor({0, 0, none}, &total, Storage::kFloat16, true) == 1.0);
}

}  // namespace

int main() {
  fixed_windows();
  adaptive_windows();
  states();
  return report();
}
