// One step of Adam on one number, with the roundings of torch.optim.Adam.
#pragma once

#include "math/scalar.h"

namespace sparsenn {

template <class T>
struct Adam {
  T decay, shrink;        // L2 as a part of the gradient; as a factor, for decoupled weight decay
  T to_mean, to_squares;  // 1 - beta1, or minus beta1 where that is the smaller one; 1 - beta2
  T beta2, eps;
  Flag<T> decays, mean_is_near;  // near: the mean moves towards the gradient, else the gradient back towards the mean

  // Options come in float64 and are rounded once, as torch.optim.Adam rounds its scalars.
  template <class Options>
  SPARSENN_INLINE Adam(const Options& options, double lr, double decay)
      : decay(static_cast<T>(decay)),
        shrink(static_cast<T>(options.decoupled ? 1.0 - lr * decay : 1.0)),
        to_mean(static_cast<T>(1.0 - options.beta1)),
        to_squares(static_cast<T>(1.0 - options.beta2)),
        beta2(static_cast<T>(options.beta2)),
        eps(static_cast<T>(options.eps)),
        decays(!options.decoupled && this->decay != T(0)),
        mean_is_near(to_mean < T(0.5)) {
    to_mean = mean_is_near.choose(to_mean, to_mean - T(1));
  }
};

// What corrects the means of the first `count` gradients for their start at 0.
template <class T>
struct AdamCorrection {
  T rate;  // -lr / (1 - beta1^count)
  T root;  // sqrt(1 - beta2^count)
};

// std::pow also for the root: Python's ** 0.5 is that. In float64, to be rounded by who uses it.
template <class Options>
SPARSENN_INLINE AdamCorrection<double> adam_correction(const Options& options, double lr, double count) {
  return {-(lr / (1.0 - std::pow(options.beta1, count))), std::pow(1.0 - std::pow(options.beta2, count), 0.5)};
}

template <class T>
SPARSENN_INLINE AdamCorrection<T> rounded(const AdamCorrection<double>& correction) {
  return {static_cast<T>(correction.rate), static_cast<T>(correction.root)};
}

// The number after the step; its running means are moved in place. kLargest: by the largest of the squares so far
// (AMSGrad), NaN if one was.
template <bool kLargest, class T>
SPARSENN_INLINE T adam_step(T value, T grad, T& mean, T& squares, T& largest, const Adam<T>& rule,
                            const AdamCorrection<T>& correction) {
  grad = rule.decays.choose(multiply_add(value, rule.decay, grad), grad);
  mean = multiply_add(rule.to_mean, grad - mean, rule.mean_is_near.choose(mean, grad));
  squares = multiply_add(rule.to_squares * grad, grad, squares * rule.beta2);
  T size = squares;
  if constexpr (kLargest) {
    const T larger = squares <= largest ? largest : squares;
    largest = size = largest != largest ? largest : larger;
  }
  size = std::sqrt(size) / correction.root + rule.eps;
  return value * rule.shrink + correction.rate * mean / size;
}

}  // namespace sparsenn
