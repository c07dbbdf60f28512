#include "cpu/tiles.h"

#include "cpu/simd.h"
#include "math/scalar.h"

namespace sparsenn::cpu {
namespace {

template <class T, int kLanes>
struct Vector {
  typedef T type __attribute__((vector_size(sizeof(T) * kLanes)));
  typedef T in_memory __attribute__((vector_size(sizeof(T) * kLanes), aligned(sizeof(T)), may_alias));
};

template <class T, int kLanes>
using vector_t = typename Vector<T, kLanes>::type;

template <int kLanes, class T>
SPARSENN_INLINE void read(vector_t<T, kLanes>& to, const T* from) {
  to = *reinterpret_cast<const typename Vector<T, kLanes>::in_memory*>(from);
}

template <int kLanes, class T>
SPARSENN_INLINE void write(T* to, const vector_t<T, kLanes>& from) {
  *reinterpret_cast<typename Vector<T, kLanes>::in_memory*>(to) = from;
}

// Lane by lane, which compilers make one instruction of.
template <int kLanes, class Sum, class Factor>
SPARSENN_INLINE void accumulate(Sum& sum, const Factor& a, const Factor& b) {
  Sum result;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) result[i] = multiply_add(a[i], b[i], sum[i]);
  sum = result;
}

template <class T, int kLanes, int kRows, int kVectors, bool kByRow>
SPARSENN_INLINE void tile(int64_t depth, const T* a, const T* b, T* c, int64_t c_stride) {
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
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const V left = (kByRow ? a[m * kDepth + k] : a[k * kRows + m]) - V{};
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) accumulate<kLanes>(sums[m][n], left, right[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) write<kLanes>(c + m * c_stride + n * kLanes, sums[m][n]);
  }
}

template <class T, int kLanes, int kRows, int kColumns>
SPARSENN_INLINE void dots(int64_t depth, const T* w, const T* x, int64_t x_stride, T* partials) {
  using V = vector_t<T, kLanes>;
  constexpr int kParts = kPartials<T> / kLanes;
  V sums[kRows][kColumns][kParts];
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        read<kLanes>(sums[m][n][part], partials + ((m * kColumns + n) * kParts + part) * kLanes);
      }
    }
  }
  for (int64_t k = 0; k < depth; k += kPartials<T>) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      V right[kColumns];
#pragma GCC unroll 4
      for (int n = 0; n < kColumns; ++n) read<kLanes>(right[n], x + n * x_stride + k + part * kLanes);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        V left;
        read<kLanes>(left, w + m * kDepth + k + part * kLanes);
#pragma GCC unroll 4
        for (int n = 0; n < kColumns; ++n) accumulate<kLanes>(sums[m][n][part], left, right[n]);
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        write<kLanes>(partials + ((m * kColumns + n) * kParts + part) * kLanes, sums[m][n][part]);
      }
    }
  }
}

// The same for one instruction set: its attribute, its vectors' bytes, the shape of dots, and the tiles' rows.
#define SPARSENN_TILES_FOR(NAME, TARGET, BYTES, DOT_ROWS, DOT_COLUMNS, ...)                                      \
  template <class T, int kRows, int kVectors, bool kByRow>                                                       \
  TARGET void tile_##NAME(int64_t depth, const T* a, const T* b, T* c, int64_t c_stride) {                       \
    tile<T, BYTES / sizeof(T), kRows, kVectors, kByRow>(depth, a, b, c, c_stride);                               \
  }                                                                                                              \
  template <class T, int kColumns>                                                                               \
  TARGET void dots_##NAME(int64_t depth, const T* w, const T* x, int64_t x_stride, T* partials) {                \
    dots<T, BYTES / sizeof(T), DOT_ROWS, kColumns>(depth, w, x, x_stride, partials);                             \
  }                                                                                                              \
  template <class T, int... kRows>                                                                               \
  const Tiles<T>& make_##NAME() {                                                                                \
    static constexpr Tile<T> all[] = {{kRows,                                                                    \
                                       {tile_##NAME<T, kRows, 1, true>, tile_##NAME<T, kRows, 2, true>},         \
                                       {tile_##NAME<T, kRows, 1, false>, tile_##NAME<T, kRows, 2, false>}}...};  \
    static constexpr Tiles<T> made{BYTES / sizeof(T),                                                            \
                                   sizeof...(kRows),                                                             \
                                   all,                                                                          \
                                   {DOT_ROWS, DOT_COLUMNS, dots_##NAME<T, DOT_COLUMNS>, dots_##NAME<T, 1>}};     \
    return made;                                                                                                 \
  }                                                                                                              \
  template <class T>                                                                                             \
  const Tiles<T>& tiles_##NAME() {                                                                               \
    return make_##NAME<T, __VA_ARGS__>();                                                                        \
  }

SPARSENN_TILES_FOR(base, , 16, 2, 1, 2, 4, 6)
#if defined(SPARSENN_HAS_CLONES)
SPARSENN_TILES_FOR(v3, __attribute__((target("arch=x86-64-v3"))), 32, 2, 2, 2, 4, 6)
SPARSENN_TILES_FOR(v4, __attribute__((target("arch=x86-64-v4"))), 64, 4, 4, 2, 4, 8, 12)
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
