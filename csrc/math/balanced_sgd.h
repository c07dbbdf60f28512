// One step of SGD on D factors of one magnitude (Kolb et al. 2025, Lemma 4): they stay so, and one number says it all.
#pragma once

#include "math/factorized_sgd.h"

namespace sparsenn {

// The weight is r |r|^(D - 1) for its signed root r. At even D the factors' common sign is not in the weight, which
// keeps its own; in a step that carries the factors over zero the root is then reflected, and its momentum with it: the
// same factors and momenta, all of them negated.
template <class T>
struct BalancedSgd : FactorizedSgd<T> {
  using Bits = typename Flag<T>::Bits;
  Bits kept;  // the sign bit where the weight keeps its sign, else none

  template <class Options>
  SPARSENN_INLINE BalancedSgd(const Options& options, double lr, double lam, int64_t depth)
      : FactorizedSgd<T>(options, lr, lam, depth), kept(depth % 2 == 0 ? sign_bit() : Bits(0)) {}

  static SPARSENN_INLINE constexpr Bits sign_bit() { return Bits(1) << (8 * sizeof(T) - 1); }
};

template <class T>
SPARSENN_INLINE T magnitude(T x) {
  return bit_cast<T>(bit_cast<typename Flag<T>::Bits>(x) & ~BalancedSgd<T>::sign_bit());
}

// |root|^(depth - 1), with the roundings of the product of that many factors.
template <class T>
SPARSENN_INLINE T other_factors(T root, int depth) {
  const T one = magnitude(root);
  T result = depth > 1 ? one : T(1);
  SPARSENN_UNROLL
  for (int d = 2; d < depth; ++d) result *= one;
  return result;
}

// Moves root and momentum, where `others` is other_factors of the root.
template <bool kMomentum, class T>
SPARSENN_INLINE void balanced_sgd_move(T grad, T others, T& root, T& momentum, const BalancedSgd<T>& rule) {
  using Bits = typename Flag<T>::Bits;
  grad = weight_gradient(grad, root * others, rule);
  const T moved = sgd_step<kMomentum>(root, grad * others, momentum, rule.factor);
  const Bits crossed = (bit_cast<Bits>(moved) ^ bit_cast<Bits>(root)) & rule.kept;
  root = bit_cast<T>(bit_cast<Bits>(moved) ^ crossed);
  if constexpr (kMomentum) momentum = bit_cast<T>(bit_cast<Bits>(momentum) ^ crossed);
}

// The same, for the weight after the step.
template <bool kMomentum, class T>
SPARSENN_INLINE T balanced_sgd_step(T grad, T& root, T& momentum, int depth, const BalancedSgd<T>& rule) {
  balanced_sgd_move<kMomentum>(grad, other_factors(root, depth), root, momentum, rule);
  return root * other_factors(root, depth);
}

}  // namespace sparsenn
