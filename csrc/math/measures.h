// What a step on factors leaves of one weight: the terms of sums over a tensor.
#pragma once

#include "math/exponential.h"

namespace sparsenn {

// Sums in float64, in this order: weights above a threshold in magnitude; w^2; (1/D) sum_d w_d^2; and the misalignment,
// what that exceeds its minimum |w|^(2/D) by (Kolb et al. 2025, Section 3).
constexpr int kMeasures = 4;

// What magnitudes are divided by, to be relative to the largest one.
SPARSENN_INLINE double divisor(double largest) { return largest == 0 ? 1.0 : largest; }

template <class T>
SPARSENN_INLINE bool is_kept(T weight, T threshold) {
  return std::fabs(weight) > threshold;
}

// By how much the mean of the factors' squares exceeds their geometric mean. Both are formed relative to the largest
// magnitude: `mean` of (w_d / largest)^2, and `product` of the same, at most 1, so that equal factors have exactly 0.
SPARSENN_INLINE double misalignment(double largest, double mean, double product, double depth) {
  constexpr double kLeastNormal = 2.2250738585072014e-308;
  const Flag<double> normal(!(product < kLeastNormal));
  const double root = exponential<Sign::negative>(logarithm(normal.choose(product, 1.0)) / depth);
  const double share = mean - normal.choose(root, 0.0);
  return (share < 0 ? 0.0 : share) * (largest * largest);  // NaN stays NaN
}

// Adds the terms of one weight whose factor d is factor(d).
template <class T, class Factor>
SPARSENN_INLINE void add_measures(double (&sums)[kMeasures], T weight, T threshold, int depth, const Factor& factor) {
  double squares = 0, largest = 0, mean = 0, product = 1;
  for (int d = 0; d < depth; ++d) {
    const double size = std::fabs(static_cast<double>(factor(d)));
    squares += size * size;
    largest = size > largest ? size : largest;
  }
  for (int d = 0; d < depth; ++d) {
    const double relative = static_cast<double>(factor(d)) / divisor(largest);
    mean += relative * relative;
    product *= relative * relative;
  }
  sums[0] += is_kept(weight, threshold) ? 1.0 : 0.0;
  sums[1] += static_cast<double>(weight) * weight;
  sums[2] += squares / depth;
  sums[3] += misalignment(largest, mean / depth, product, depth);
}

}  // namespace sparsenn
