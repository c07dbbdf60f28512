// Products with sparse rows of weights: of a panel, and of one sample.
#pragma once

#include <cstdint>

namespace sparsenn::runtime {

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

}  // namespace sparsenn::runtime
