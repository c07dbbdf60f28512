// One step of Adam on the D factors of one weight.
#pragma once

#include "math/adam.h"
#include "math/hadamard.h"

namespace sparsenn {

template <class T>
struct FactorizedAdam {
  Adam<T> factor;  // its decay is 2 lam / D: the gradient of (lam / D) * sum_d w_d^2 is this times w_d
  T weight_decay;  // plain L2 on the product, added to its gradient before the chain rule
  T sign;          // -1 to maximize
  Flag<T> decays_weight;

  template <class Options>
  SPARSENN_INLINE FactorizedAdam(const Options& options, double lr, double lam, int64_t depth)
      : factor(options, lr, 2.0 * lam / static_cast<double>(depth)),
        weight_decay(static_cast<T>(options.weight_decay)),
        sign(options.maximize ? T(-1) : T(1)),
        decays_weight(weight_decay != T(0)) {}
};

// Moves the factors of one weight, and what Adam knows of each, and returns their new product.
template <int D, bool kLargest, class T>
SPARSENN_INLINE T factorized_adam_step(T grad, T (&factors)[D], T (&means)[D], T (&squares)[D], T (&largest)[D],
                                       const FactorizedAdam<T>& rule, const AdamCorrection<T>& correction) {
  T others[D];
  leave_one_out(factors, others);
  grad = weight_gradient(grad, product(factors), rule);
  SPARSENN_UNROLL
  for (int d = 0; d < D; ++d) {
    factors[d] =
        adam_step<kLargest>(factors[d], grad * others[d], means[d], squares[d], largest[d], rule.factor, correction);
  }
  return product(factors);
}

}  // namespace sparsenn
