// One proximal step of one weight: SGD with momentum, then the proximal map of lam |w|.
#pragma once

#include "math/sgd.h"
#include "math/soft_threshold.h"

namespace sparsenn {

template <class T>
struct ProxSgd {
  Sgd<T> sgd;
  T sign;          // -1 to maximize
  T effective_lr;  // the long-run step size, lr (1 - dampening) / (1 - momentum): a threshold is this times lam

  // with_momentum: a constant gradient g moves a weight by lr (1 - dampening) / (1 - momentum) g a step in the long
  // run. A threshold that is scaled alike, and no other, has the minimizer of loss + lam |w| as its fixed point.
  template <class Options>
  SPARSENN_INLINE ProxSgd(const Options& options, double lr, bool with_momentum)
      : sgd(options, lr, options.weight_decay),
        sign(options.maximize ? T(-1) : T(1)),
        effective_lr(static_cast<T>(with_momentum ? lr * ((1.0 - options.dampening) / (1.0 - options.momentum)) : lr)) {
  }
};

// The weight after the step. Without a penalty it is that of torch.optim.SGD to the last bit, negative zeros included.
template <class W, bool kMomentum, class T>
SPARSENN_INLINE W prox_sgd_step(T weight, T grad, T& momentum, bool penalized, T lam, const ProxSgd<T>& rule) {
  weight = sgd_step<kMomentum>(weight, grad * rule.sign, momentum, rule.sgd);
  return penalized ? store_thresholded<W>(soft_thresholded(weight, lam * rule.effective_lr)) : store<W>(weight);
}

}  // namespace sparsenn
