// Numbers that the host knows, or that lie on the device.
#pragma once

#include "launchers.h"
#include "math/scalar.h"

namespace sparsenn::cuda {

SPARSENN_INLINE double value_of(const Scalar& scalar) {
  if (scalar.device == nullptr) return scalar.value;
  return scalar.is_double ? *static_cast<const double*>(scalar.device) : *static_cast<const float*>(scalar.device);
}

}  // namespace sparsenn::cuda
