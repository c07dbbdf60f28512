// Products over the factors of a block, for depths that are not unrolled.
#pragma once

#include "cpu/block.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "math/hadamard.h"

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

// Moves the factors of a block, and sets its weights to their new products: factor d when the prefix of the old factors
// before it is known and those behind it are still old. move(d, i, old, gradient) is what becomes of a number.
template <class Block, class Move>
SPARSENN_INLINE void step_deep(const Block& block, const Move& move) {
  using W = std::decay_t<decltype(*block.weight)>;
  using T = accumulator_t<W>;
  T grad[kBlock], prefix[kBlock], suffix[kBlock];
  product_of(prefix, block.factors, block.depth, block.size);
  for (int64_t i = 0; i < block.size; ++i) grad[i] = weight_gradient(load(block.grad[i]), prefix[i], block.rule);
  std::fill_n(prefix, block.size, T(1));
  for (int64_t d = 0; d < block.depth; ++d) {
    product_behind(suffix, block.factors, block.depth, d, block.size);
    T* const factor = block.factors[d];
    SPARSENN_INDEPENDENT
    for (int64_t i = 0; i < block.size; ++i) {
      const T old = factor[i];
      factor[i] = move(d, i, old, grad[i] * (prefix[i] * suffix[i]));
      prefix[i] *= old;
    }
  }
  product_of(prefix, block.factors, block.depth, block.size);
  for (int64_t i = 0; i < block.size; ++i) block.weight[i] = store<W>(prefix[i]);
}

}  // namespace sparsenn::cpu
