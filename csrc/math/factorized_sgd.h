// One step of SGD on the D factors of one weight (Kolb et al. 2025, Algorithm 2 and Equation 15, with momentum).
#pragma once

#include "math/hadamard.h"
#include "math/sgd.h"

namespace sparsenn {

template <class T>
struct FactorizedSgd {
  Sgd<T> factor;   // its decay is 2 lam / D: the gradient of (lam / D) * sum_d w_d^2 is this times w_d
  T weight_decay;  // plain L2 on the product, added to its gradient before the chain rule
  T sign;          // -1 to maximize
  Flag<T> decays_weight;

  template <class Options>
  SPARSENN_INLINE FactorizedSgd(const Options& options, double lr, double lam, int64_t depth)
      : factor(options, lr, 2.0 * lam / static_cast<double>(depth)),
        weight_decay(static_cast<T>(options.weight_decay)),
        sign(options.maximize ? T(-1) : T(1)),
        decays_weight(weight_decay != T(0)) {}
};

// Moves the factors and momenta of one weight and returns their new product.
template <int D, bool kMomentum, class T>
SPARSENN_INLINE T factorized_sgd_step(T grad, T (&factors)[D], T (&momenta)[D], const FactorizedSgd<T>& rule) {
  T others[D];
  leave_one_out(factors, others);
  grad = weight_gradient(grad, product(factors), rule);
  SPARSENN_UNROLL
  for (int d = 0; d < D; ++d) factors[d] = sgd_step<kMomentum>(factors[d], grad * others[d], momenta[d], rule.factor);
  return product(factors);
}

}  // namespace sparsenn
