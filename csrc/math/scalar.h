// Element types and the arithmetic every formula is written in, for host and device, without torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SPARSENN_INLINE __host__ __device__ __forceinline__
#else
#define SPARSENN_INLINE inline __attribute__((always_inline))
#endif

// Before a loop over the factors of one weight, which are held in registers; or over the terms of a polynomial.
#if defined(__CUDACC__) || defined(__clang__)
#define SPARSENN_UNROLL _Pragma("unroll")
#define SPARSENN_UNROLL_ALL _Pragma("unroll")
#else
#define SPARSENN_UNROLL _Pragma("GCC unroll 8")
#define SPARSENN_UNROLL_ALL _Pragma("GCC unroll 32")
#endif

namespace sparsenn {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// Sums and products are formed in float32, or in float64 where the elements are.
template <class T>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename accumulator<T>::type;

// Calls body(T{}) with the element type that is known at run time; DType is an enum with these names.
template <class DType, class Body>
void dispatch_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float64:
      return body(double{});
    case DType::float32:
      return body(float{});
    case DType::bfloat16:
      return body(sparsenn::bfloat16{});
    case DType::float16:
      return body(sparsenn::float16{});
  }
}

template <class To, class From>
SPARSENN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

SPARSENN_INLINE double load(double x) { return x; }
SPARSENN_INLINE float load(float x) { return x; }

SPARSENN_INLINE float load(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

SPARSENN_INLINE float load(float16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(bit_cast<__half>(x.bits));
#else
  // Read as float32 bits, a half has an exponent that is 112 too small; the product is exact, subnormals included.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t value = magnitude >= 0x0f800000u ? finite | 0x7f800000u : finite;
  return bit_cast<float>(value | static_cast<uint32_t>(x.bits & 0x8000u) << 16);
#endif
}

template <class T>
SPARSENN_INLINE T store(accumulator_t<T> x);

template <>
SPARSENN_INLINE double store<double>(double x) {
  return x;
}
template <>
SPARSENN_INLINE float store<float>(float x) {
  return x;
}

// Round to nearest, ties to even; NaN stays NaN, and what is too large becomes infinite.
template <>
SPARSENN_INLINE bfloat16 store<bfloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

template <>
SPARSENN_INLINE float16 store<float16>(float x) {
#if defined(__CUDA_ARCH__)
  return {bit_cast<uint16_t>(__float2half_rn(x))};
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the half is subnormal: adding 1/2, whose last bit is worth 2^-24, rounds in the right place.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {static_cast<uint16_t>(half | (bits >> 16 & 0x8000u))};
#endif
}

// Contraction is off everywhere; where a product is added without rounding it is written so.
SPARSENN_INLINE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
SPARSENN_INLINE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// A condition that is the same for all elements, as a mask: a branch or a conditional expression on it, several times
// in a loop, keeps compilers from vectorizing the loop.
template <class T>
struct Flag {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  Bits mask;
  SPARSENN_INLINE explicit Flag(bool set) : mask(set ? ~Bits(0) : Bits(0)) {}
  SPARSENN_INLINE T choose(T yes, T no) const {
    return bit_cast<T>((bit_cast<Bits>(yes) & mask) | (bit_cast<Bits>(no) & ~mask));
  }
};

}  // namespace sparsenn
