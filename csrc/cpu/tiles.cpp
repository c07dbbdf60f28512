#include "cpu/tiles.h"

#include "cpu/vector.h"

namespace sparsenn::cpu {
namespace {

template <class T, int kLanes, int kRows, int kVectors, bool kByRow>
SPARSENN_INLINE void tile(int64_t depth, const T* a, const T* b, T* c, int64_t c_stride, const Ahead& ahead) {
  using V = vector_t<T, kLanes>;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) read<kLanes>(sums[m][n], c + m * c_stride + n * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    V right[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) read<kLanes>(right[n], b + (k * kVectors + n) * kLanes);
    const uintptr_t wanted = ahead.address + k % kPartials<T> * ahead.stride + k * ahead.step;
    __builtin_prefetch(reinterpret_cast<const void*>(wanted), 0, 2);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      V left;
      splat<kLanes>(left, a + (kByRow ? m * kDepth + k : k * kRows + m));
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) accumulate<kLanes, T>(sums[m][n], left, right[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) write<kLanes>(c + m * c_stride + n * kLanes, sums[m][n]);
  }
}

// A round halves the vectors' number and the lanes that are still to be added: of lanes in blocks of kSize, those of
// the upper half of each block go to the lower half. The result has twice the blocks.
template <int kLanes, int kSize, class V>
SPARSENN_INLINE void add_blocks(V* rows) {
  if constexpr (kSize > 1) {
    constexpr int kHalf = kSize / 2;
    constexpr auto kLower = [](int i) {
      const int block = i / kHalf;
      return block / 2 * kSize + i % kHalf + block % 2 * kLanes;
    };
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      V lower, upper;
      shuffle_by<kLanes, 0>(lower, rows[i], rows[i + kHalf], kLower);
      shuffle_by<kLanes, kHalf>(upper, rows[i], rows[i + kHalf], kLower);
      rows[i] = lower + upper;
    }
    add_blocks<kLanes, kHalf>(rows);
  }
}

// The totals of up to kLanes rows of partial sums. A row becomes one vector by adding upper halves to lower ones.
template <class T, int kLanes>
SPARSENN_INLINE void add_lanes(const T (*partials)[kPartials<T>], int count, T* to) {
  using V = vector_t<T, kLanes>;
  constexpr int kParts = kPartials<T> / kLanes;
  V rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    V parts[kParts] = {};
    if (i < count) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) read<kLanes>(parts[part], partials[i] + part * kLanes);
    }
#pragma GCC unroll 4
    for (int half = kParts / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
      for (int part = 0; part < half; ++part) parts[part] += parts[part + half];
    }
    rows[i] = parts[0];
  }
  add_blocks<kLanes, kLanes>(rows);
  T sums[kLanes];
  write<kLanes>(sums, rows[0]);
  std::copy_n(sums, count < kLanes ? count : kLanes, to);
}

template <class T, int kLanes, int kRows, int kColumns, bool kStarts>
SPARSENN_INLINE void dots(const Piece<T> (&pieces)[2], T* to) {
  using V = vector_t<T, kLanes>;
  constexpr int kParts = kPartials<T> / kLanes, kSums = kRows * kColumns;
  V sums[kSums * kParts];
#pragma GCC unroll 32
  for (int i = 0; i < kSums * kParts; ++i) sums[i] = V{};
#pragma GCC unroll 1
  for (int p = 0; p < 2; ++p) {
    const auto [depth, phi, stride, starts, ends, x, x_stride] = pieces[p];
    V scales[kRows] = {};
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) scales[m] = (kStarts ? ends[m] : -ends[m]) - V{};
    for (int64_t k = 0; k < depth; k += kPartials<T>) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        const int64_t at = k + part * kLanes;
        V start, weights[kRows];
        if constexpr (kStarts) read<kLanes>(start, starts + at);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          read<kLanes>(weights[m], phi + m * stride + at);
          weights[m] *= kStarts ? start - scales[m] : scales[m];
        }
#pragma GCC unroll 8
        for (int n = 0; n < kColumns; ++n) {
          V right;
          read<kLanes>(right, x + n * x_stride + at);
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m)
            accumulate<kLanes, T>(sums[(m * kColumns + n) * kParts + part], weights[m], right);
        }
      }
    }
  }
  // By way of memory: whatever is done to the sums in place keeps compilers from holding them in registers above.
  alignas(64) T partials[kSums][kPartials<T>];
#pragma GCC unroll 32
  for (int i = 0; i < kSums * kParts; ++i) write<kLanes>(partials[i / kParts] + i % kParts * kLanes, sums[i]);
  for (int first = 0; first < kSums; first += kLanes) add_lanes<T, kLanes>(partials + first, kSums - first, to + first);
}

// The first `count` lanes, and zeros.
template <class T, int kLanes, class V>
SPARSENN_INLINE void keep(V& of, int64_t count) {
  indices_t<T, kLanes> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  of = lanes < static_cast<typename std::remove_reference_t<decltype(lanes[0])>>(count) ? of : V{};
}

template <class T, int kLanes, int kRows, bool kStarts>
SPARSENN_INLINE void sweep(const Rows<T>& rows) {
  using V = vector_t<T, kLanes>;
  constexpr int kParts = kPartials<T> / kLanes;
  V sums[kRows][kParts], ends[kRows];
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
    ends[m] = (kStarts ? rows.ends[m] : -rows.ends[m]) - V{};
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) read<kLanes>(sums[m][part], rows.partials + (m * kParts + part) * kLanes);
  }
  for (int64_t k = 0; k < rows.size; k += kPartials<T>) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = k + part * kLanes;
      V start, phi[kRows], scales[kRows], weights[kRows], gradients[kRows];
      if constexpr (kStarts) read<kLanes>(start, rows.starts + at);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        read<kLanes>(phi[m], rows.phi + m * rows.stride + at);
        scales[m] = kStarts ? start - ends[m] : ends[m];
        weights[m] = scales[m] * phi[m];
        gradients[m] = V{};
      }
      for (int64_t b = 0; b < rows.batch; ++b) {
        V x, x_grad;
        read<kLanes>(x, rows.x + b * rows.x_stride + at);
        read<kLanes>(x_grad, rows.x_grad + b * rows.x_stride + at);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          V grad;
          splat<kLanes>(grad, rows.grad + b * kRows + m);
          accumulate<kLanes, T>(gradients[m], grad, x);
          accumulate<kLanes, T>(x_grad, grad, weights[m]);
        }
        write<kLanes>(rows.x_grad + b * rows.x_stride + at, x_grad);
      }
      if (at + kLanes > rows.size) {
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) keep<T, kLanes>(gradients[m], rows.size - at);
      }
      V columns;
      if constexpr (kStarts) read<kLanes>(columns, rows.columns + at);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        if constexpr (kStarts) accumulate<kLanes, T>(columns, gradients[m], phi[m]);
        accumulate<kLanes, T>(sums[m][part], gradients[m], phi[m]);
        const V phi_grad = scales[m] * gradients[m];
        write<kLanes>(rows.phi_grad + m * rows.phi_grad_stride + at, phi_grad);
      }
      if constexpr (kStarts) write<kLanes>(rows.columns + at, columns);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part)
      write<kLanes>(rows.partials + (m * kParts + part) * kLanes, sums[m][part]);
  }
}

template <class T, int kLanes, bool kStarts>
SPARSENN_INLINE void pull(const Pull<T>& row) {
  using V = vector_t<T, kLanes>;
  constexpr int kParts = kPartials<T> / kLanes;
  V sums[kParts];
  const V end = (kStarts ? row.end : -row.end) - V{};
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) read<kLanes>(sums[part], row.partials + part * kLanes);
  int64_t k = 0;
  for (; k + kPartials<T> <= row.size; k += kPartials<T>) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = k + part * kLanes;
      V grad, phi, columns, scale = end;
      read<kLanes>(grad, row.grad + at);
      read<kLanes>(phi, row.phi + at);
      if constexpr (kStarts) {
        read<kLanes>(scale, row.starts + at);
        scale -= end;
        read<kLanes>(columns, row.columns + at);
        accumulate<kLanes, T>(columns, grad, phi);
        write<kLanes>(row.columns + at, columns);
      }
      accumulate<kLanes, T>(sums[part], grad, phi);
      const V phi_grad = scale * grad;
      write<kLanes>(row.phi_grad + at, phi_grad);
    }
  }
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) write<kLanes>(row.partials + part * kLanes, sums[part]);
  for (int64_t lane = 0; k < row.size; ++k, ++lane) {
    const T grad = row.grad[k], phi = row.phi[k];
    if constexpr (kStarts) row.columns[k] = multiply_add(grad, phi, row.columns[k]);
    row.partials[lane] = multiply_add(grad, phi, row.partials[lane]);
    row.phi_grad[k] = (kStarts ? row.starts[k] - row.end : -row.end) * grad;
  }
}

template <class T, int kLanes, int kVectors>
SPARSENN_INLINE void transpose(int64_t depth, const T* from, int64_t stride, T* to, int64_t to_stride) {
  constexpr int kWidth = kVectors * kLanes;
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    for (int n = 0; n < kWidth; n += kLanes) {
      transpose_square<T, kLanes>(from + n * stride + k, stride, to + k * to_stride + n, to_stride);
    }
  }
  for (; k < depth; ++k) {
    for (int n = 0; n < kWidth; ++n) to[k * to_stride + n] = from[n * stride + k];
  }
}

// The same for one instruction set: its attribute, its vectors' bytes, the shape of dots and the rows of those of one
// column, the rows of a sweep and those of the tiles.
// clang-format off
#define SPARSENN_TILES_FOR(NAME, TARGET, BYTES, DOT_ROWS, DOT_COLUMNS, ONE_DOT_ROWS, SWEEP_ROWS, ...)              \
  template <class T, int kRows, int kVectors, bool kByRow>                                                         \
  TARGET void tile_##NAME(int64_t depth, const T* a, const T* b, T* c, int64_t c_stride, const Ahead& ahead) {     \
    tile<T, BYTES / sizeof(T), kRows, kVectors, kByRow>(depth, a, b, c, c_stride, ahead);                          \
  }                                                                                                                \
  template <class T, int kRows, int kColumns>                                                                      \
  TARGET void dots_##NAME(const Piece<T> (&pieces)[2], T* sums) {                                                  \
    if (pieces[1].starts) {                                                                                        \
      dots<T, BYTES / sizeof(T), kRows, kColumns, true>(pieces, sums);                                             \
    } else {                                                                                                       \
      dots<T, BYTES / sizeof(T), kRows, kColumns, false>(pieces, sums);                                            \
    }                                                                                                              \
  }                                                                                                                \
  template <class T, int kRows>                                                                                    \
  TARGET void sweep_##NAME(const Rows<T>& rows) {                                                                  \
    if (rows.starts) {                                                                                             \
      sweep<T, BYTES / sizeof(T), kRows, true>(rows);                                                              \
    } else {                                                                                                       \
      sweep<T, BYTES / sizeof(T), kRows, false>(rows);                                                             \
    }                                                                                                              \
  }                                                                                                                \
  template <class T>                                                                                               \
  TARGET void pull_##NAME(const Pull<T>& row) {                                                                    \
    if (row.starts) {                                                                                              \
      pull<T, BYTES / sizeof(T), true>(row);                                                                       \
    } else {                                                                                                       \
      pull<T, BYTES / sizeof(T), false>(row);                                                                      \
    }                                                                                                              \
  }                                                                                                                \
  template <class T, int kVectors>                                                                                 \
  TARGET void transpose_##NAME(int64_t depth, const T* from, int64_t stride, T* to, int64_t to_stride) {           \
    transpose<T, BYTES / sizeof(T), kVectors>(depth, from, stride, to, to_stride);                                 \
  }                                                                                                                \
  template <class T, int... kRows>                                                                                 \
  const Tiles<T>& make_##NAME() {                                                                                  \
    constexpr int kMost = DOT_COLUMNS, kSome = (kMost + 1) / 2;                                                    \
    static constexpr Tile<T> all[] = {{kRows,                                                                      \
                                       {tile_##NAME<T, kRows, 1, true>, tile_##NAME<T, kRows, 2, true>},           \
                                       {tile_##NAME<T, kRows, 1, false>, tile_##NAME<T, kRows, 2, false>}}...};    \
    static constexpr Tiles<T> made{                                                                                \
        BYTES / sizeof(T),                                                                                         \
        sizeof...(kRows),                                                                                          \
        all,                                                                                                       \
        {{DOT_ROWS, kMost, dots_##NAME<T, DOT_ROWS, kMost>},                                                       \
         {DOT_ROWS, kSome, dots_##NAME<T, DOT_ROWS, kSome>},                                                       \
         {ONE_DOT_ROWS, 1, dots_##NAME<T, ONE_DOT_ROWS, 1>}},                                                      \
        {SWEEP_ROWS, sweep_##NAME<T, SWEEP_ROWS>, sweep_##NAME<T, 1>},                                             \
        pull_##NAME<T>,                                                                                            \
        {transpose_##NAME<T, 1>, transpose_##NAME<T, 2>}};                                                         \
    return made;                                                                                                   \
  }                                                                                                                \
  template <class T>                                                                                               \
  const Tiles<T>& tiles_##NAME() {                                                                                 \
    return make_##NAME<T, __VA_ARGS__>();                                                                          \
  }
// clang-format on

SPARSENN_TILES_FOR(base, , 16, 2, 1, 2, 2, 2, 4, 6)
#if defined(SPARSENN_HAS_CLONES)
SPARSENN_TILES_FOR(v3, __attribute__((target("arch=x86-64-v3"))), 32, 2, 2, 4, 2, 2, 4, 6)
SPARSENN_TILES_FOR(v4, __attribute__((target("arch=x86-64-v4"))), 64, 3, 8, 8, 4, 2, 4, 8, 12)
#endif

template <class T>
const Tiles<T>& choose() {
#if defined(SPARSENN_HAS_CLONES)
  if (__builtin_cpu_supports("x86-64-v4")) return tiles_v4<T>();
  if (__builtin_cpu_supports("x86-64-v3")) return tiles_v3<T>();
#endif
  return tiles_base<T>();
}

}  // namespace

template <>
const Tiles<float>& tiles() {
  static const Tiles<float>& chosen = choose<float>();
  return chosen;
}

template <>
const Tiles<double>& tiles() {
  static const Tiles<double>& chosen = choose<double>();
  return chosen;
}

}  // namespace sparsenn::cpu
