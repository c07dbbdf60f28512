// Panels, in which activations lie: feature f of `lanes` samples at panel[f * lanes], or, for one sample, the pixels of
// a channel one after the other; either way a weight meets a run of consecutive numbers.
#pragma once

#include <cstdint>

namespace sparsenn::runtime {

constexpr int64_t kPanel = 64;      // samples of the widest panel
constexpr int64_t kSlack = kPanel;  // floats that may be read, and are ignored, beyond the end of a buffer

// Where the features of a sample go in a panel.
struct Places {
  int64_t features;
  const int32_t* rows;    // those that nobody reads share a row
  const uint8_t* wanted;  // whether any is of features 8i to 8i + 7, or of the last eight, for the last i
};
// panel[rows[f] * lanes + s] = x[s * features + f] for s < count. What the other lanes hold does not matter: no lane
// meets another. False if a number of x is not finite.
bool to_panel(const float* x, int64_t count, const Places& places, int64_t lanes, float* panel);
// x[s * features + f] = panel[f * lanes + s] for s < count.
void from_panel(const float* panel, int64_t count, int64_t features, int64_t lanes, float* x);

// to[r * to_stride + i] = from[r * from_stride + i] for i < size: short runs, for which a call of memcpy each is dear.
void copy_runs(int64_t count, const float* from, int64_t from_stride, int64_t size, float* to, int64_t to_stride);

bool all_finite(const float* x, int64_t size);

}  // namespace sparsenn::runtime
