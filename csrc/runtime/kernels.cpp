#include "runtime/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/simd.h"
#include "cpu/vector.h"
#include "math/scalar.h"

namespace sparsenn::runtime {
namespace {

typedef float Vec __attribute__((vector_size(64)));
typedef float VecInMemory __attribute__((vector_size(64), aligned(4), may_alias));
typedef float Half __attribute__((vector_size(32)));
typedef float HalfInMemory __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t HalfIndex __attribute__((vector_size(32)));
typedef float Quad __attribute__((vector_size(16)));
typedef float QuadInMemory __attribute__((vector_size(16), aligned(4), may_alias));

SPARSENN_INLINE void read(Vec& to, const float* from) { to = *reinterpret_cast<const VecInMemory*>(from); }
SPARSENN_INLINE void write(float* to, const Vec& from) { *reinterpret_cast<VecInMemory*>(to) = from; }

// NaN stays NaN.
template <class V>
SPARSENN_INLINE void clamp(V& x) {
  x = x < 0 ? V{} : x;
}

// A long row is summed in several chains, of which none waits for another.
template <int kLanes, int kVectors>
SPARSENN_INLINE void sparse(const Rows& rows, const float* x, int64_t scale, float* out, int64_t out_stride,
                            bool relu) {
  using V = cpu::vector_t<float, kLanes>;
  constexpr int kChains = kVectors < 4 ? 4 / kVectors : 1;
  const auto meet = [&](int32_t k, V(&sums)[kVectors]) SPARSENN_INLINED {
    V weight;
    cpu::splat<kLanes>(weight, rows.values + k);
    const float* at = x + rows.offsets[k] * scale;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      V right;
      cpu::read<kLanes>(right, at + i * kLanes);
      cpu::accumulate<kLanes, float>(sums[i], weight, right);
    }
  };
  for (int64_t r = 0; r < rows.count; ++r) {
    V sums[kVectors], bias;
    cpu::splat<kLanes>(bias, rows.bias + r);
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) sums[i] = bias;
    int32_t k = rows.starts[r];
    const int32_t end = rows.starts[r + 1];
    if (kChains > 1 && end - k >= 4 * kChains) {
      V chains[kChains][kVectors] = {};
      for (; k + kChains <= end; k += kChains) {
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains; ++chain) meet(k + chain, chains[chain]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) {
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains; ++chain) sums[i] += chains[chain][i];
      }
    }
    for (; k < end; ++k) meet(k, sums);
    float* to = out + r * out_stride;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      if (relu) clamp(sums[i]);
      cpu::write<kLanes>(to + i * kLanes, sums[i]);
    }
  }
}

// For one instruction set: its attribute and its vectors' bytes. Written for each, because GCC makes sixteen
// instructions of a number that becomes a vector in a clone.
using Sparse = void (*)(const Rows& rows, const float* x, int64_t scale, float* out, int64_t out_stride, bool relu);
// clang-format off
#define SPARSENN_SPARSE_FOR(NAME, TARGET, BYTES)                                                                   \
  template <int kPanelLanes>                                                                                       \
  TARGET void sparse_##NAME(const Rows& rows, const float* x, int64_t scale, float* out, int64_t out_stride,       \
                            bool relu) {                                                                           \
    constexpr int kLanes = BYTES / 4 < kPanelLanes ? BYTES / 4 : kPanelLanes;                                      \
    sparse<kLanes, kPanelLanes / kLanes>(rows, x, scale, out, out_stride, relu);                                   \
  }                                                                                                                \
  constexpr Sparse sparse_by_##NAME[] = {sparse_##NAME<8>, sparse_##NAME<16>, sparse_##NAME<32>, sparse_##NAME<64>};
// clang-format on

SPARSENN_SPARSE_FOR(base, , 16)
#if defined(SPARSENN_HAS_CLONES)
SPARSENN_SPARSE_FOR(v3, __attribute__((target("arch=x86-64-v3"))), 32)
SPARSENN_SPARSE_FOR(v4, __attribute__((target("arch=x86-64-v4"))), 64)
#endif

const Sparse* choose_sparse() {
#if defined(SPARSENN_HAS_CLONES)
  if (__builtin_cpu_supports("x86-64-v4")) return sparse_by_v4;
  if (__builtin_cpu_supports("x86-64-v3")) return sparse_by_v3;
#endif
  return sparse_by_base;
}

template <class Index>
SPARSENN_INLINE void quads(const Quads& all, const Index* columns, const float* x, float* out, bool relu) {
  for (int64_t q = 0; q < all.count; ++q) {
    Quad sums = *reinterpret_cast<const QuadInMemory*>(all.bias + 4 * q);
    for (int64_t k = all.starts[q]; k < all.starts[q + 1]; ++k) {
      const Index* at = columns + 4 * k;
      const Quad right = {x[at[0]], x[at[1]], x[at[2]], x[at[3]]};
      sums += *reinterpret_cast<const QuadInMemory*>(all.values + 4 * k) * right;
    }
    if (relu) clamp(sums);
    const int32_t* rows = all.rows + 4 * q;
    out[rows[0]] = sums[0];  // a quad that is not full has its last rows twice
    out[rows[1]] = sums[1];
    out[rows[2]] = sums[2];
    out[rows[3]] = sums[3];
  }
}

SPARSENN_CLONES void quads_narrow(const Quads& all, const float* x, float* out, bool relu) {
  quads(all, all.narrow, x, out, relu);
}
SPARSENN_CLONES void quads_wide(const Quads& all, const float* x, float* out, bool relu) {
  quads(all, all.wide, x, out, relu);
}

SPARSENN_INLINE float total(const Vec& sums) {
  float lanes[kVector];
  write(lanes, sums);
  for (int half = kVector / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// An 8 x 8 transposition: of halves of vectors, of pairs of neighbours, of neighbours. Row i begins at row(i).
template <class Row>
SPARSENN_INLINE void transpose8(const Row& row, Half (&rows)[8]) {
  const HalfIndex first = {0, 1, 2, 3, 8, 9, 10, 11}, second = {4, 5, 6, 7, 12, 13, 14, 15};
  const HalfIndex low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
  const HalfIndex low_pairs = {0, 1, 8, 9, 4, 5, 12, 13}, high_pairs = {2, 3, 10, 11, 6, 7, 14, 15};
  Half halves[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Half upper = *reinterpret_cast<const HalfInMemory*>(row(i));
    const Half lower = *reinterpret_cast<const HalfInMemory*>(row(i + 4));
    halves[i] = __builtin_shuffle(upper, lower, first);
    halves[i + 4] = __builtin_shuffle(upper, lower, second);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const Half a = __builtin_shuffle(halves[i], halves[i + 1], low),
               b = __builtin_shuffle(halves[i], halves[i + 1], high);
    const Half c = __builtin_shuffle(halves[i + 2], halves[i + 3], low);
    const Half d = __builtin_shuffle(halves[i + 2], halves[i + 3], high);
    rows[i] = __builtin_shuffle(a, c, low_pairs);
    rows[i + 1] = __builtin_shuffle(a, c, high_pairs);
    rows[i + 2] = __builtin_shuffle(b, d, low_pairs);
    rows[i + 3] = __builtin_shuffle(b, d, high_pairs);
  }
}

// Brings samples into a panel, by eights of features and kEights of samples at a time: a whole line of the cache, where
// that can be. Its sums end as 0 if all numbers that it saw are finite: 0 x is 0, and NaN for infinities and NaN.
class Entrance {
 public:
  SPARSENN_INLINE Entrance(const Places& places, int64_t lanes) : places_(places), lanes_(lanes) {}

  // Sample k of them begins at row(k).
  template <int kEights, class Row>
  SPARSENN_INLINE void bring(const Row& row, float* to) {
    if (places_.features < 8) {
      for (int64_t f = 0; f < places_.features; ++f) {
        for (int k = 0; k < 8 * kEights; ++k) {
          to[places_.rows[f] * lanes_ + k] = row(k)[f];
          rest_ += row(k)[f] * 0.0f;
        }
      }
      return;
    }
    for (int64_t eight = 0; 8 * eight < places_.features; ++eight) {
      const int64_t f = std::min(8 * eight, places_.features - 8);
      if (!places_.wanted[eight]) {
#pragma GCC unroll 16
        for (int k = 0; k < 8 * kEights; ++k) sums_[k % 4] += *reinterpret_cast<const HalfInMemory*>(row(k) + f) * 0.0f;
        continue;
      }
      Half rows[kEights][8];
#pragma GCC unroll 2
      for (int n = 0; n < kEights; ++n) {
        transpose8([&](int k) SPARSENN_INLINED { return row(8 * n + k) + f; }, rows[n]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) sums_[j % 4] += rows[n][j] * 0.0f;
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        float* place = to + places_.rows[f + j] * lanes_;
#pragma GCC unroll 2
        for (int n = 0; n < kEights; ++n) *reinterpret_cast<HalfInMemory*>(place + 8 * n) = rows[n][j];
      }
    }
  }

  template <int kEights>
  SPARSENN_INLINE void bring_all(const float* x, int64_t count, float* panel) {
    const int64_t features = places_.features;
    int64_t s = 0;
    for (; s + 8 * kEights <= count; s += 8 * kEights) {
      const float* from = x + s * features;
      bring<kEights>([&](int64_t k) SPARSENN_INLINED { return from + k * features; }, panel + s);
    }
    if (s < count) {  // the last sample stands for those that are missing
      bring<kEights>([&](int64_t k) SPARSENN_INLINED { return x + std::min(s + k, count - 1) * features; }, panel + s);
    }
  }

  SPARSENN_INLINE bool finite() const {
    const Half sums = sums_[0] + sums_[1] + sums_[2] + sums_[3];
    float sum = rest_;
    for (int i = 0; i < 8; ++i) sum += sums[i];
    return sum == 0;
  }

 private:
  const Places& places_;
  int64_t lanes_;
  Half sums_[4] = {};
  float rest_ = 0;
};

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

void sparse_rows(const Rows& rows, const float* x, int64_t scale, int64_t lanes, float* out, int64_t out_stride,
                 bool relu) {
  static const Sparse* by_lanes = choose_sparse();
  by_lanes[std::countr_zero(static_cast<uint64_t>(lanes)) - 3](rows, x, scale, out, out_stride, relu);
}

void sparse_one(const Quads& quads, const float* x, float* out, bool relu) {
  if (quads.narrow) {
    quads_narrow(quads, x, out, relu);
  } else {
    quads_wide(quads, x, out, relu);
  }
}

SPARSENN_CLONES bool to_panel(const float* x, int64_t count, const Places& places, int64_t lanes, float* panel) {
  Entrance entrance(places, lanes);
  lanes < 16 ? entrance.bring_all<1>(x, count, panel) : entrance.bring_all<2>(x, count, panel);
  return entrance.finite();
}

SPARSENN_CLONES void from_panel(const float* panel, int64_t count, int64_t features, int64_t lanes, float* x) {
  int64_t f = 0;
  for (; f + 8 <= features; f += 8) {  // all samples of eight features, whose lines are in the first cache then
    for (int64_t s = 0; s < count; s += 8) {
      const int64_t left = std::min<int64_t>(count - s, 8);
      Half rows[8];
      const float* from = panel + f * lanes + s;
      transpose8([&](int64_t k) SPARSENN_INLINED { return from + k * lanes; }, rows);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        if (j < left) *reinterpret_cast<HalfInMemory*>(x + (s + j) * features + f) = rows[j];
      }
    }
  }
  for (int64_t s = 0; s < count && f < features; ++s) {
    for (int64_t g = f; g < features; ++g) x[s * features + g] = panel[g * lanes + s];
  }
}

// By vectors, of which the last overlaps the one before it.
SPARSENN_CLONES void copy_runs(int64_t count, const float* from, int64_t from_stride, int64_t size, float* to,
                               int64_t to_stride) {
  const auto by = [&](auto vector) SPARSENN_INLINED {
    using V = decltype(vector);
    constexpr int64_t kWidth = sizeof(V) / sizeof(float);
    typedef V InMemory __attribute__((aligned(4), may_alias));
    for (int64_t r = 0; r < count; ++r, from += from_stride, to += to_stride) {
      for (int64_t i = 0; i + kWidth < size; i += kWidth)
        *reinterpret_cast<InMemory*>(to + i) = *reinterpret_cast<const InMemory*>(from + i);
      *reinterpret_cast<InMemory*>(to + size - kWidth) = *reinterpret_cast<const InMemory*>(from + size - kWidth);
    }
  };
  if (size >= kVector) {
    by(Vec{});
  } else if (size >= 4) {
    by(Quad{});
  } else {
    for (int64_t r = 0; r < count; ++r, from += from_stride, to += to_stride) {
      for (int64_t i = 0; i < size; ++i) to[i] = from[i];
    }
  }
}

// 0 x is 0, and NaN for infinities and NaN.
SPARSENN_CLONES bool all_finite(const float* x, int64_t size) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kVector <= size; i += 4 * kVector) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Vec part;
      read(part, x + i + j * kVector);
      sums[j] += part * 0.0f;
    }
  }
  float sum = total(sums[0] + sums[1] + sums[2] + sums[3]);
  for (; i < size; ++i) sum += 0.0f * x[i];
  return sum == 0;
}

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
