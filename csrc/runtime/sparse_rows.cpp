#include "runtime/sparse_rows.h"

#include <bit>

#include "cpu/simd.h"
#include "cpu/vector.h"

namespace sparsenn::runtime {
namespace {

using Quad = cpu::vector_t<float, 4>;

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
    Quad sums;
    cpu::read<4>(sums, all.bias + 4 * q);
    for (int64_t k = all.starts[q]; k < all.starts[q + 1]; ++k) {
      const Index* at = columns + 4 * k;
      const Quad right = {x[at[0]], x[at[1]], x[at[2]], x[at[3]]};
      Quad values;
      cpu::read<4>(values, all.values + 4 * k);
      sums += values * right;
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

}  // namespace sparsenn::runtime
