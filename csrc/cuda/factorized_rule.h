// The rule of a step on factors as far as the host knows it. What lies on the device is read when the kernel runs: a
// captured graph follows a schedule.
#pragma once

#include "cuda/scalar.h"
#include "math/balanced_sgd.h"

namespace sparsenn::cuda {

// Known: FactorizedSgd or BalancedSgd.
template <class Known>
struct FactorizedRule {
  FactorizedSgdOptions options;
  int64_t depth;
  Known known;

  FactorizedRule(const FactorizedSgdOptions& options, int64_t depth)
      : options(options), depth(depth), known(options, options.lr.value, options.lam.value, depth) {}

  SPARSENN_INLINE FactorizedRule prepared() const {
    FactorizedRule rule = *this;
    if (options.lr.device || options.lam.device) {
      const Known read(options, value_of(options.lr), value_of(options.lam), depth);
      // These alone: the others stay constants, which take no registers.
      rule.known.factor.lr = read.factor.lr;
      rule.known.factor.decay = read.factor.decay;
      rule.known.factor.decays = read.factor.decays;
    }
    return rule;
  }
};

}  // namespace sparsenn::cuda
