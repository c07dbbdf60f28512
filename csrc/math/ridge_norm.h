// What the norm of a ridge net takes of a weight (Parhi, Wolf and Nowak 2021, Equation 2), and its slope.
#pragma once

#include "math/scalar.h"

namespace sparsenn {

// Of a matrix: the squared L1 norm of each column, its squares, or its magnitudes.
enum class NormKind : int8_t { squared_columns, squares, magnitudes };

template <class A>
SPARSENN_INLINE double norm_value(NormKind kind, A x) {
  const double wide = x;
  return kind == NormKind::squares ? wide * wide : std::fabs(wide);
}

template <class A>
SPARSENN_INLINE A signed_as(A magnitude, A x) {
  return x > 0 ? magnitude : x < 0 ? -magnitude : A(0) * magnitude;
}

// The slope of the squares and of the magnitudes, times what comes from above; at 0 it is 0.
template <class A>
SPARSENN_INLINE A norm_slope(NormKind kind, A scale, A x) {
  return kind == NormKind::squares ? scale * (A(2) * x) : signed_as(scale, x);
}

// The slope of a column's squared L1 norm by one of its entries, for the column's norm.
template <class A>
SPARSENN_INLINE A column_slope(A scale, A norm, A x) {
  return signed_as(scale * (A(2) * norm), x);
}

}  // namespace sparsenn
