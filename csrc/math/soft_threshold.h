// The proximal map of t |x| (Donoho 1995; Parikh and Boyd 2014, section 6.5.2).
#pragma once

#include "math/scalar.h"

namespace sparsenn {

// sign(x) max(|x| - t, 0), for t >= 0. No zero is negative; NaN stays NaN, and no infinity is made one.
template <class T>
SPARSENN_INLINE T soft_thresholded(T x, T threshold) {
  const T shrunk = x - std::copysign(threshold, x);
  return std::fabs(x) <= threshold ? T(0) : shrunk;
}

// Its derivative by x, times what comes from above.
template <class T>
SPARSENN_INLINE T soft_threshold_gradient(T grad, T x, T threshold) {
  return std::fabs(x) <= threshold ? T(0) : grad;
}

// Rounds what was thresholded to its own type; in a half type that can make a zero, which gets no sign.
template <class W>
SPARSENN_INLINE W store_thresholded(accumulator_t<W> x) {
  W result = store<W>(x);
  if constexpr (sizeof(W) == 2) result.bits = (result.bits & 0x7fffu) ? result.bits : uint16_t(0);
  return result;
}

SPARSENN_INLINE bool is_zero(double x) { return x == 0; }
SPARSENN_INLINE bool is_zero(float x) { return x == 0; }
SPARSENN_INLINE bool is_zero(bfloat16 x) { return (x.bits & 0x7fffu) == 0; }
SPARSENN_INLINE bool is_zero(float16 x) { return (x.bits & 0x7fffu) == 0; }

}  // namespace sparsenn
