// Activations of small networks: the value and the derivative, for host and device.
#pragma once

#include "math/exponential.h"

namespace sparsenn {

// Their numbers in sparsenn/ops/stacked_steps.py.
enum class Activation : int32_t { identity, relu, tanh, sigmoid, gelu };
constexpr int64_t kActivations = 5;

// The value of an activation at z; slope becomes its derivative there. NaN gives NaN.
template <Activation kKind, class T>
SPARSENN_INLINE T activation(T z, T& slope) {
  if constexpr (kKind == Activation::relu) {
    slope = z > T(0) ? T(1) : T(0);
    return z < T(0) ? T(0) : z;
  } else if constexpr (kKind == Activation::tanh) {
    // By expm1(2 |z|), which is as exact near 0 as elsewhere.
    const T e = Exponential<T, Sign::positive>(std::fabs(z) * T(2)).minus_one();
    const T value = std::copysign(e / (e + T(2)), z);
    slope = multiply_add(-value, value, T(1));
    return value;
  } else if constexpr (kKind == Activation::sigmoid) {
    const T value = T(1) / (T(1) + exponential(-z));
    slope = multiply_add(-value, value, value);
    return value;
  } else if constexpr (kKind == Activation::gelu) {
    // z P(Z < z), the exact form of torch.nn.GELU (Hendrycks and Gimpel 2016).
    const Normal<T> normal(z);
    const T below = z > T(0) ? T(1) - normal.above : normal.above;
    slope = multiply_add(z, normal.density, below);
    return z * below;
  } else {
    slope = T(1);
    return z;
  }
}

}  // namespace sparsenn
