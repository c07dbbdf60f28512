// What depends on the processor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// One function, compiled for each level of x86-64; the loader picks. Inside, everything is inlined into each copy.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && \
    !defined(SPARSENN_ONE_ISA)
#define SPARSENN_HAS_CLONES
#define SPARSENN_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SPARSENN_CLONES
#endif

#define SPARSENN_INLINED __attribute__((always_inline))  // for a lambda

#if defined(__clang__)
#define SPARSENN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SPARSENN_INDEPENDENT _Pragma("GCC ivdep")
#endif

#include "math/scalar.h"

namespace sparsenn::cpu {

// Stores that don't fetch their destination into the cache first; the caller ends a series of them with end_stream().
SPARSENN_INLINE void stream(void* to, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  auto* out = static_cast<char*>(to);
  const auto* in = static_cast<const char*>(from);
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(out) & 15);
  std::memcpy(out, in, head);
  int64_t i = head;
  for (; i + 16 <= bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
  }
  std::memcpy(out + i, in + i, bytes - i);
#else
  std::memcpy(to, from, bytes);
#endif
}

SPARSENN_INLINE void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

constexpr int64_t kSpan = 128;  // elements that are computed before they are streamed out together

// Runs compute(begin, size, outputs) over a block, with kOutputs pointers to write `size` results to: the outputs' own
// memory, or, streamed, a small buffer on its way there.
template <int kOutputs, class T, class Compute>
SPARSENN_INLINE void for_each_span(int64_t size, bool streamed, T* const (&outputs)[kOutputs], const Compute& compute) {
  T buffer[kOutputs][kSpan];
  T* spans[kOutputs];
  const int64_t span = streamed ? kSpan : size;
  for (int64_t begin = 0; begin < size; begin += span) {
    const int64_t count = std::min(span, size - begin);
    for (int k = 0; k < kOutputs; ++k) spans[k] = streamed ? buffer[k] : outputs[k] + begin;
    compute(begin, count, spans);
    for (int k = 0; streamed && k < kOutputs; ++k) stream(outputs[k] + begin, spans[k], count * sizeof(T));
  }
  if (streamed) end_stream();
}

}  // namespace sparsenn::cpu
