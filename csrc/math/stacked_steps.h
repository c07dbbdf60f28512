// One weight of a small network and its optimizer's state, one step; sparsenn/ops/stacked_steps.py says what they are.
#pragma once

#include "math/hadamard.h"
#include "math/soft_threshold.h"

namespace sparsenn {

// Their numbers in sparsenn/ops/stacked_steps.py.
enum class Optimizer : int32_t { sgd, prox, factorized, adam };
enum class WeightPenalty : int32_t { none, l1, l2 };
constexpr int64_t kOptimizers = 4, kWeightPenalties = 3;

// The rates of one run in one step, as its elements need them.
template <class T>
struct StepRates {
  T lr;         // adam: over 1 - beta1^t
  T strength;   // of the penalty's gradient: lam (l1), 2 lam (l2), 2 lam / D (factorized)
  T decay;      // of the weight, beside the penalty
  T threshold;  // the threshold of prox
  T momentum;
  T rest1;  // adam: 1 - beta1, which a beta that is rounded first would be far from
  T beta2, rest2, eps;
  T root;  // adam: 1 / sqrt(1 - beta2^t)
  T clipping;

  // t: which step this is, from 1 on.
  template <class Run>
  static SPARSENN_INLINE StepRates of(const Run& run, double t) {
    StepRates rates{};
    rates.lr = static_cast<T>(run.lr);
    rates.momentum = static_cast<T>(run.momentum);
    rates.decay = static_cast<T>(run.weight_decay);
    rates.threshold = static_cast<T>(run.lr * run.lam / (1.0 - run.momentum));
    rates.clipping = static_cast<T>(run.clipping);
    rates.strength = static_cast<T>(run.penalty == WeightPenalty::l1 ? run.lam : 2.0 * run.lam);
    if (run.optimizer == Optimizer::factorized) {
      rates.strength = static_cast<T>(2.0 * run.lam / static_cast<double>(run.depth));
    }
    if (run.optimizer == Optimizer::adam) {
      rates.lr = static_cast<T>(run.lr / (1.0 - std::pow(run.beta1, t)));
      rates.rest1 = static_cast<T>(1.0 - run.beta1);
      rates.beta2 = static_cast<T>(run.beta2);
      rates.rest2 = static_cast<T>(1.0 - run.beta2);
      rates.eps = static_cast<T>(run.eps);
      rates.root = static_cast<T>(1.0 / std::sqrt(1.0 - std::pow(run.beta2, t)));
    }
    return rates;
  }
};

// What the sum that stacked_step makes of a network is multiplied by to be its penalty.
template <class Run>
SPARSENN_INLINE double penalty_scale(const Run& run) {
  return run.optimizer == Optimizer::factorized ? run.lam / static_cast<double>(run.depth) : run.lam;
}

template <Optimizer kOptimizer, int D>
constexpr int kStateRows = kOptimizer == Optimizer::factorized ? 2 * D
                           : kOptimizer == Optimizer::adam     ? 2
                                                               : 1;

// The weight after the step. `penalty` grows by what the weight had to add to it before.
template <Optimizer kOptimizer, WeightPenalty kPenalty, int D, class T>
SPARSENN_INLINE T stacked_step(T weight, T grad, T (&state)[kStateRows<kOptimizer, D>], const StepRates<T>& rates,
                               T& penalty) {
  if constexpr (kPenalty == WeightPenalty::l1) {
    penalty += std::fabs(weight);
    grad += weight > T(0) ? rates.strength : weight < T(0) ? -rates.strength : T(0);
  } else if constexpr (kPenalty == WeightPenalty::l2) {
    penalty = multiply_add(weight, weight, penalty);
    grad = multiply_add(weight, rates.strength, grad);
  }
  grad = multiply_add(weight, rates.decay, grad);
  if constexpr (kOptimizer == Optimizer::factorized) {
    T factors[D], others[D];
    SPARSENN_UNROLL
    for (int d = 0; d < D; ++d) factors[d] = state[d];
    leave_one_out(factors, others);
    SPARSENN_UNROLL
    for (int d = 0; d < D; ++d) {
      penalty = multiply_add(factors[d], factors[d], penalty);
      const T own = multiply_add(factors[d], rates.strength, grad * others[d]);
      state[D + d] = multiply_add(state[D + d], rates.momentum, own);
      state[d] = factors[d] = multiply_add(state[D + d], -rates.lr, factors[d]);
    }
    weight = product(factors);
  } else if constexpr (kOptimizer == Optimizer::adam) {
    state[0] = multiply_add(grad - state[0], rates.rest1, state[0]);
    state[1] = multiply_add(grad * grad, rates.rest2, state[1] * rates.beta2);
    const T size = multiply_add(std::sqrt(state[1]), rates.root, rates.eps);
    weight = multiply_add(state[0] / size, -rates.lr, weight);
  } else {
    if constexpr (kOptimizer == Optimizer::prox) penalty += std::fabs(weight);
    state[0] = multiply_add(state[0], rates.momentum, grad);
    weight = multiply_add(state[0], -rates.lr, weight);
    if constexpr (kOptimizer == Optimizer::prox) weight = soft_thresholded(weight, rates.threshold);
  }
  return std::fabs(weight) < rates.clipping ? T(0) : weight;
}

}  // namespace sparsenn
