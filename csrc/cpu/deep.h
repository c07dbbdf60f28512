// Products over the factors of a block, for depths that are not unrolled.
#pragma once

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "math/scalar.h"

namespace sparsenn::cpu {

template <class T>
SPARSENN_INLINE void multiply(accumulator_t<T>* result, const T* by, int64_t size) {
  SPARSENN_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) result[i] *= load(by[i]);
}

// result = factors[0] * ... * factors[depth - 1], from left to right.
template <class T>
SPARSENN_INLINE void product_of(accumulator_t<T>* result, T* const* factors, int64_t depth, int64_t size) {
  for (int64_t i = 0; i < size; ++i) result[i] = load(factors[0][i]);
  for (int64_t d = 1; d < depth; ++d) multiply<T>(result, factors[d], size);
}

// result = factors[depth - 1] * ... * factors[d + 1], from right to left, as leave_one_out forms it.
template <class T>
SPARSENN_INLINE void product_behind(accumulator_t<T>* result, T* const* factors, int64_t depth, int64_t d,
                                    int64_t size) {
  std::fill_n(result, size, accumulator_t<T>(1));
  for (int64_t k = depth - 1; k > d; --k) multiply<T>(result, factors[k], size);
}

}  // namespace sparsenn::cpu
