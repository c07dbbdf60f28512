// One step of SGD on the D factors of one weight (Kolb et al. 2025, Algorithm 2 and Equation 15, with momentum).
#pragma once

#include "math/hadamard.h"

namespace sparsenn {

template <class T>
struct FactorizedSgd {
  T lr;
  T factor_decay;  // 2 lam / D: the gradient of (lam / D) * sum_d w_d^2 is this times w_d
  T weight_decay;  // plain L2 on the product, added to its gradient before the chain rule
  T momentum;
  T gradient_scale;  // 1 - dampening
  T sign;            // -1 to maximize
  Flag<T> nesterov, decays_factors, decays_weight;

  // Options come in float64 and are rounded once, as torch.optim.SGD rounds its scalars.
  template <class Options>
  SPARSENN_INLINE FactorizedSgd(const Options& options, double lr, double lam, int64_t depth)
      : lr(static_cast<T>(lr)),
        factor_decay(static_cast<T>(2.0 * lam / static_cast<double>(depth))),
        weight_decay(static_cast<T>(options.weight_decay)),
        momentum(static_cast<T>(options.momentum)),
        gradient_scale(static_cast<T>(1.0 - options.dampening)),
        sign(options.maximize ? T(-1) : T(1)),
        nesterov(options.nesterov),
        decays_factors(factor_decay != T(0)),
        decays_weight(weight_decay != T(0)) {}
};

// The gradient of the product as the factors see it.
template <class T>
SPARSENN_INLINE T weight_gradient(T grad, T weight, const FactorizedSgd<T>& rule) {
  grad *= rule.sign;
  return rule.decays_weight.choose(multiply_add(weight, rule.weight_decay, grad), grad);
}

// One factor's update; roundings are those of torch.optim.SGD, so that a single factor moves exactly as a plain weight
// does.
template <bool kMomentum, class T>
SPARSENN_INLINE T updated_factor(T factor, T grad, T& momentum, const FactorizedSgd<T>& rule) {
  grad = rule.decays_factors.choose(multiply_add(factor, rule.factor_decay, grad), grad);
  if constexpr (kMomentum) {
    momentum = multiply_add(grad, rule.gradient_scale, momentum * rule.momentum);
    grad = rule.nesterov.choose(multiply_add(momentum, rule.momentum, grad), momentum);
  }
  return multiply_add(grad, -rule.lr, factor);
}

// Moves the factors and momenta of one weight and returns their new product.
template <int D, bool kMomentum, class T>
SPARSENN_INLINE T factorized_sgd_step(T grad, T (&factors)[D], T (&momenta)[D], const FactorizedSgd<T>& rule) {
  T others[D];
  leave_one_out(factors, others);
  grad = weight_gradient(grad, product(factors), rule);
  SPARSENN_UNROLL
  for (int d = 0; d < D; ++d) factors[d] = updated_factor<kMomentum>(factors[d], grad * others[d], momenta[d], rule);
  return product(factors);
}

}  // namespace sparsenn
