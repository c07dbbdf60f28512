// The weight of a spectral layer and its derivatives, one entry (Giambagli et al. 2023, Equation 4).
#pragma once

#include "math/scalar.h"

namespace sparsenn {

// What an entry of the eigenvectors is multiplied by to become a weight.
template <class T>
SPARSENN_INLINE T spectral_scale(T lambda_in, T lambda_out) {
  return lambda_in - lambda_out;
}

}  // namespace sparsenn
