// The inner loops of inference. Activations lie in panels: feature f of `lanes` samples at panel[f * lanes], or, for
// one sample, the pixels of a channel one after the other; either way a weight meets a run of consecutive numbers.
#pragma once

#include <cstdint>
#include <vector>

namespace sparsenn::runtime {

constexpr int64_t kVector = 16;     // floats of the vectors here, 64 bytes
constexpr int64_t kPanel = 64;      // samples of the widest panel
constexpr int64_t kSlack = kPanel;  // floats that may be read, and are ignored, beyond the end of a buffer

// Compressed rows of weights. `offsets` says where the activation that a weight meets begins.
struct Rows {
  int64_t count;
  const int32_t* starts;
  const int32_t* offsets;
  const float* values;
  const float* bias;
};

// out[r * out_stride + i] = act(bias[r] + sum_k values[k] x[offsets[k] * lanes + i]) for i < lanes, which is 8, 16, 32
// or 64; act is max(0, .) or nothing. `scale` is what offsets are multiplied by: lanes, or 1 where they are in floats.
void sparse_rows(const Rows& rows, const float* x, int64_t scale, int64_t lanes, float* out, int64_t out_stride,
                 bool relu);

// Rows of one sample, four at a time: rows of about equal length are neighbours, their weights interleaved.
struct Quads {
  int64_t count;          // of quads
  const int32_t* starts;  // of each quad's weights, in fours
  const float* values;
  const uint16_t* narrow;  // one of the two has the columns
  const int32_t* wide;
  const int32_t* rows;  // where the four sums belong; a quad that is not full has its last row twice or more
  const float* bias;    // of the four
};
void sparse_one(const Quads& quads, const float* x, float* out, bool relu);

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
void add(const float* a, const float* b, int64_t size, float* out, bool relu);
void relu(const float* x, int64_t size, float* out);
// out = act(scale x + shift)
void affine(const float* x, int64_t size, float scale, float shift, float* out, bool relu);

// One dimension of a pooling: where each window begins and ends in the input, and the factor of its average.
struct Spans {
  std::vector<int32_t> begin, end;
  std::vector<float> factor;
};

// Averages or maxima over windows of one channel of `width` pixels a row, each of `lanes` numbers. `row` is room for a
// row.
void pool(const float* x, int64_t width, int64_t lanes, bool average, const Spans& rows, const Spans& columns,
          float* row, float* out);

enum class Curve { tanh, sigmoid, gelu, gelu_tanh };
void apply(Curve curve, const float* x, int64_t size, float* out);

}  // namespace sparsenn::runtime
