// The product of D factors of one weight, and its derivatives.
#pragma once

#include "math/scalar.h"

namespace sparsenn {

// Depths up to this one are compiled with the factors of a weight in registers; deeper ones take the general loops.
constexpr int kMaxUnrolledDepth = 8;

template <int D, class T>
SPARSENN_INLINE T product(const T (&factors)[D]) {
  T result = factors[0];
  SPARSENN_UNROLL
  for (int d = 1; d < D; ++d) result *= factors[d];
  return result;
}

// others[d] = prod_{k != d} factors[k], by prefix and suffix products: exact at zeros, where product / factor is not.
template <int D, class T>
SPARSENN_INLINE void leave_one_out(const T (&factors)[D], T (&others)[D]) {
  others[D - 1] = T(1);
  SPARSENN_UNROLL
  for (int d = D - 1; d > 0; --d) others[d - 1] = others[d] * factors[d];
  T prefix = T(1);
  SPARSENN_UNROLL
  for (int d = 0; d < D; ++d) {
    others[d] = prefix * others[d];
    prefix *= factors[d];
  }
}

// The gradient of the product as the factors see it, by a rule that decays the product and may maximize.
template <class T, class Rule>
SPARSENN_INLINE T weight_gradient(T grad, T weight, const Rule& rule) {
  grad *= rule.sign;
  return rule.decays_weight.choose(multiply_add(weight, rule.weight_decay, grad), grad);
}

}  // namespace sparsenn
