// Vectors of registers, written once for every instruction set: a function with a target attribute inlines these.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/simd.h"

namespace sparsenn::cpu {

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

template <int kLanes, class T>
SPARSENN_INLINE void splat(vector_t<T, kLanes>& to, const T* from) {
#if defined(SPARSENN_HAS_CLONES)
  // Left alone, GCC loads a whole vector and broadcasts its first lane.
  if constexpr (sizeof(to) >= 32 && sizeof(T) == 4) {
    asm("vbroadcastss %1, %0" : "=v"(to) : "m"(*from));
    return;
  } else if constexpr (sizeof(to) >= 32) {
    asm("vbroadcastsd %1, %0" : "=v"(to) : "m"(*from));
    return;
  }
#endif
  to = *from - vector_t<T, kLanes>{};
}

// sum += a b, rounded once. Written out, because C++ has no such operation on vectors, and GCC makes one of a loop over
// lanes only where the code around it is simple.
template <int kLanes, class T, class V>
SPARSENN_INLINE void accumulate(V& to, const V& a, const V& b) {
  V sum = to;
#if defined(SPARSENN_HAS_CLONES)
  if constexpr (sizeof(V) >= 32 && sizeof(T) == 4) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  } else if constexpr (sizeof(V) >= 32) {
    asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  } else
#endif
  {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) sum[i] = multiply_add(a[i], b[i], sum[i]);
  }
  to = sum;
}

// sum += *a b for a number that is used but once: in the widest vectors the product reads it by itself, where a splat
// before it would take as long as the product.
template <int kLanes, class T, class V>
SPARSENN_INLINE void accumulate_splat(V& to, const T* a, const V& b) {
#if defined(SPARSENN_HAS_CLONES)
  if constexpr (sizeof(V) == 64) {
    V sum = to;
    if constexpr (sizeof(T) == 4) {
      asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
    } else {
      asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
    }
    to = sum;
    return;
  }
#endif
  V left;
  splat<kLanes>(left, a);
  accumulate<kLanes, T>(to, left, b);
}

template <class T, int kLanes>
using indices_t = vector_t<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, kLanes>;

// Lane i is lane kAt[i] of a or, counted on, of b: by the builtin that clang has too.
template <int... kAt, class V>
SPARSENN_INLINE void shuffle(V& to, const V& a, const V& b) {
  to = __builtin_shufflevector(a, b, kAt...);
}

// The same with kFrom + at(i), for a lambda that captures nothing.
template <int kLanes, int kFrom, class V, class At>
SPARSENN_INLINE void shuffle_by(V& to, const V& a, const V& b, At) {
  [&]<int... kLane>(std::integer_sequence<int, kLane...>)
      SPARSENN_INLINED { shuffle<kFrom + At{}(kLane)...>(to, a, b); }(std::make_integer_sequence<int, kLanes>());
}

// A square of kLanes rows, of which row(i) points to one, to one of kLanes columns: interleaving the first half of the
// vectors with the second, log2(kLanes) times.
template <class T, int kLanes, class Row>
SPARSENN_INLINE void transpose_square(const Row& row, T* to, int64_t to_stride) {
  using V = vector_t<T, kLanes>;
  constexpr auto kInTurn = [](int i) { return i / 2 + i % 2 * kLanes; };
  V rows[kLanes], next[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) read<kLanes>(rows[i], static_cast<const T*>(row(i)));
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      shuffle_by<kLanes, 0>(next[2 * i], rows[i], rows[i + kLanes / 2], kInTurn);
      shuffle_by<kLanes, kLanes / 2>(next[2 * i + 1], rows[i], rows[i + kLanes / 2], kInTurn);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) write<kLanes>(to + i * to_stride, rows[i]);
}

// The same for rows that are `stride` apart.
template <class T, int kLanes>
SPARSENN_INLINE void transpose_square(const T* from, int64_t stride, T* to, int64_t to_stride) {
  transpose_square<T, kLanes>([&](int i) SPARSENN_INLINED { return from + i * stride; }, to, to_stride);
}

}  // namespace sparsenn::cpu
