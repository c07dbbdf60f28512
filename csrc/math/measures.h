// What a step on factors leaves of one weight: the terms of sums over a tensor.
#pragma once

#include "math/exponential.h"
#include "math/hadamard.h"

namespace sparsenn {

// Sums in float64, in this order: weights above a threshold in magnitude; w^2; (1/D) sum_d w_d^2; and the misalignment,
// what that exceeds its minimum |w|^(2/D) by (Kolb et al. 2025, Section 3).
constexpr int kMeasures = 4;

template <class T>
SPARSENN_INLINE bool is_kept(T weight, T threshold) {
  return std::fabs(weight) > threshold;
}

// What magnitudes are divided by, to be relative to the largest one: equal ones then have a misalignment of exactly 0.
SPARSENN_INLINE double divisor(double largest) { return largest == 0 ? 1.0 : largest; }

// Folds a running product of squares, each at most 1, into a logarithm and resets it to 1, or to 0 where it
// underflowed. The geometric mean of up to kMaxUnrolledDepth squares is negligible beside their mean then; deeper
// products are folded after each factor, before they can underflow.
SPARSENN_INLINE void take_log(double& product, double& log) {
  constexpr double kLeastNormal = 2.2250738585072014e-308;
  const Flag<double> normal(!(product < kLeastNormal));  // NaN has a logarithm, NaN
  log += logarithm(normal.choose(product, 1.0));
  product = normal.choose(1.0, 0.0);
}

// By how much the mean of the squares exceeds their geometric mean, both relative to the largest magnitude.
SPARSENN_INLINE double misalignment(double largest, double mean, double product, double log, double depth) {
  take_log(product, log);
  const double share = mean - product * exponential<Sign::negative>(log / depth);
  return (share < 0 ? 0.0 : share) * largest * largest;  // NaN stays NaN
}

// Adds the terms of one weight whose factor d is factor(d).
template <class T, class Factor>
SPARSENN_INLINE void add_measures(double (&sums)[kMeasures], T weight, T threshold, int depth, const Factor& factor) {
  double squares = 0, largest = 0, mean = 0;
  for (int d = 0; d < depth; ++d) {
    const double magnitude = std::fabs(static_cast<double>(factor(d)));
    squares += magnitude * magnitude;
    largest = magnitude > largest ? magnitude : largest;
  }
  double product = 1, log = 0;
  for (int d = 0; d < depth; ++d) {
    const double relative = static_cast<double>(factor(d)) / divisor(largest);
    mean += relative * relative;
    product *= relative * relative;
    if (depth > kMaxUnrolledDepth) take_log(product, log);
  }
  sums[0] += is_kept(weight, threshold) ? 1.0 : 0.0;
  sums[1] += static_cast<double>(weight) * weight;
  sums[2] += squares / depth;
  sums[3] += misalignment(largest, mean / depth, product, log, depth);
}

}  // namespace sparsenn
