// Layers without weights: sums, activations, pooling. They take panels and single samples alike.
#pragma once

#include <cstdint>
#include <vector>

namespace sparsenn::runtime {

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
