// One step of SGD on one number, with the roundings of torch.optim.SGD.
#pragma once

#include "math/scalar.h"

namespace sparsenn {

template <class T>
struct Sgd {
  T lr, decay, momentum;
  T gradient_scale;  // 1 - dampening
  Flag<T> nesterov, decays;

  // Options come in float64 and are rounded once, as torch.optim.SGD rounds its scalars.
  template <class Options>
  SPARSENN_INLINE Sgd(const Options& options, double lr, double decay)
      : lr(static_cast<T>(lr)),
        decay(static_cast<T>(decay)),
        momentum(static_cast<T>(options.momentum)),
        gradient_scale(static_cast<T>(1.0 - options.dampening)),
        nesterov(options.nesterov),
        decays(this->decay != T(0)) {}
};

// The number after the step; momentum is moved in place.
template <bool kMomentum, class T>
SPARSENN_INLINE T sgd_step(T value, T grad, T& momentum, const Sgd<T>& rule) {
  grad = rule.decays.choose(multiply_add(value, rule.decay, grad), grad);
  if constexpr (kMomentum) {
    momentum = multiply_add(grad, rule.gradient_scale, momentum * rule.momentum);
    grad = rule.nesterov.choose(multiply_add(momentum, rule.momentum, grad), momentum);
  }
  return multiply_add(grad, -rule.lr, value);
}

}  // namespace sparsenn
