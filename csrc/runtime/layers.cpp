#include "runtime/layers.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/simd.h"

namespace sparsenn::runtime {
namespace {

template <class F>
SPARSENN_INLINE void each(int64_t size, const F& body) {
  SPARSENN_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) body(i);
}

struct Plus {
  SPARSENN_INLINE float operator()(float a, float b) const { return a + b; }
};
// The larger one; NaN wins.
struct Larger {
  SPARSENN_INLINE float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

// Whether all windows are `size` wide and `size` apart.
SPARSENN_INLINE bool side_by_side(const Spans& spans, int32_t size) {
  for (size_t i = 0; i < spans.begin.size(); ++i) {
    if (spans.begin[i] != static_cast<int32_t>(i) * size || spans.end[i] != spans.begin[i] + size) return false;
  }
  return true;
}

// First the rows of a window into one, then its columns.
template <class Join>
SPARSENN_INLINE void pool_by(const Join& join, float none, const float* x, int64_t width, int64_t lanes,
                             const Spans& rows, const Spans& columns, float* row, float* out) {
  const int64_t count = columns.begin.size();
  const bool pairs = lanes == 1 && side_by_side(columns, 2);
  for (size_t y = 0; y < rows.begin.size(); ++y, out += count * lanes) {
    std::fill_n(row, width * lanes, none);
    for (int64_t i = rows.begin[y]; i < rows.end[y]; ++i) {
      const float* from = x + i * width * lanes;
      each(width * lanes, [&](int64_t k) SPARSENN_INLINED { row[k] = join(from[k], row[k]); });
    }
    if (pairs) {
      each(count, [&](int64_t k) SPARSENN_INLINED { out[k] = join(row[2 * k], row[2 * k + 1]); });
      continue;
    }
    for (int64_t k = 0; k < count; ++k) {
      float* to = out + k * lanes;
      std::fill_n(to, lanes, none);
      for (int64_t j = columns.begin[k]; j < columns.end[k]; ++j) {
        const float* from = row + j * lanes;
        each(lanes, [&](int64_t lane) SPARSENN_INLINED { to[lane] = join(from[lane], to[lane]); });
      }
    }
  }
}

}  // namespace

SPARSENN_CLONES void add(const float* a, const float* b, int64_t size, float* out, bool relu) {
  if (relu) {
    each(size, [&](int64_t i) SPARSENN_INLINED {
      const float sum = a[i] + b[i];
      out[i] = sum < 0 ? 0 : sum;
    });
  } else {
    each(size, [&](int64_t i) SPARSENN_INLINED { out[i] = a[i] + b[i]; });
  }
}

SPARSENN_CLONES void relu(const float* x, int64_t size, float* out) {
  each(size, [&](int64_t i) SPARSENN_INLINED { out[i] = x[i] < 0 ? 0 : x[i]; });
}

SPARSENN_CLONES void affine(const float* x, int64_t size, float scale, float shift, float* out, bool relu) {
  each(size, [&](int64_t i) SPARSENN_INLINED {
    const float y = scale * x[i] + shift;
    out[i] = relu && y < 0 ? 0 : y;
  });
}

SPARSENN_CLONES void pool(const float* x, int64_t width, int64_t lanes, bool average, const Spans& rows,
                          const Spans& columns, float* row, float* out) {
  if (!average) {
    pool_by(Larger(), -std::numeric_limits<float>::infinity(), x, width, lanes, rows, columns, row, out);
    return;
  }
  pool_by(Plus(), 0, x, width, lanes, rows, columns, row, out);
  const int64_t count = columns.begin.size();
  for (size_t y = 0; y < rows.begin.size(); ++y) {
    if (lanes == 1) {
      each(count, [&](int64_t k) SPARSENN_INLINED { out[k] *= rows.factor[y] * columns.factor[k]; });
      out += count;
    } else {
      for (int64_t k = 0; k < count; ++k, out += lanes) {
        const float factor = rows.factor[y] * columns.factor[k];
        each(lanes, [&](int64_t lane) SPARSENN_INLINED { out[lane] *= factor; });
      }
    }
  }
}

void apply(Curve curve, const float* x, int64_t size, float* out) {
  switch (curve) {
    case Curve::tanh:
      for (int64_t i = 0; i < size; ++i) out[i] = std::tanh(x[i]);
      break;
    case Curve::sigmoid:
      for (int64_t i = 0; i < size; ++i) out[i] = 1 / (1 + std::exp(-x[i]));
      break;
    case Curve::gelu:
      for (int64_t i = 0; i < size; ++i) out[i] = 0.5f * x[i] * std::erfc(-x[i] * 0.70710678118654752f);
      break;
    case Curve::gelu_tanh:
      for (int64_t i = 0; i < size; ++i) {
        const float inner = 0.79788456080286536f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
        out[i] = 0.5f * x[i] * (1 + std::tanh(inner));
      }
      break;
  }
}

}  // namespace sparsenn::runtime
