// The launcher of balanced steps against a loop over single weights, bit for bit, in every dtype, depth and layout.
#pragma once

#include <cmath>

#include "launcher_cases.h"

namespace sparsenn::test {

// The factors of a weight have the magnitude |m| and their product the sign s at m > 0: w = s m^depth. m may come to be
// negative, and is what a factor without a sign of its own would be.
template <class T>
T scalar_balanced_step(T grad, T& root, T* velocity, int64_t depth, const FactorizedSgdOptions& options) {
  const T s = std::copysign(T(1), root);
  Values<T> m{std::fabs(root)}, u;
  if (velocity) u.push_back(*velocity * s);
  T others = 1;
  for (int64_t d = 1; d < depth; ++d) others *= m[0];
  if (options.maximize) grad = -grad;
  if (options.weight_decay != 0) grad = std::fma(s * (others * m[0]), static_cast<T>(options.weight_decay), grad);
  // With one factor, whose gradient is that of m, and a lam that gives it the decay 2 lam / depth.
  FactorizedSgdOptions of_one = options;
  of_one.maximize = false, of_one.weight_decay = 0;
  of_one.lam.value = options.lam.value / static_cast<double>(depth);
  scalar_step(s * grad * others, m, u, of_one);
  T weight = s;
  for (int64_t d = 0; d < depth; ++d) weight *= m[0];
  const T sign = depth % 2 == 0 ? s * std::copysign(T(1), m[0]) : s;
  root = sign * m[0];
  if (velocity) *velocity = sign * u[0];
  return weight;
}

template <class Device, class W>
void balanced_step_in(const Form& form, int64_t depth, int variant, bool measures) {
  using T = accumulator_t<W>;
  for (const bool with_momenta : {false, true}) {
    Measured measured;
    measured.on = measures;
    FactorizedSgdOptions options = step_options(variant);
    options.lr.value = 0.8;  // many roots cross zero
    if (!with_momenta) options.momentum = 0, options.nesterov = false;
    Tensor<W> weight = filled<W>(form, 1, 5, true)[0], grad = filled<W>(form, 2, 6)[1];
    Tensor<T> root = filled<T>(form, 1, 7, true)[0], momentum = filled<T>(form, 1, 8, true)[0];
    Tensor<T> old_root = root, old_momentum = momentum;
    const Tensor<W> before = weight;
    Values<W> weights;
    Values<T> roots, momenta;
    for (int64_t i = 0; i < weight.numel(); ++i) {
      T r = old_root.at(i), v = old_momentum.at(i);
      weights.push_back(
          store<W>(scalar_balanced_step(load(grad.at(i)), r, with_momenta ? &v : nullptr, depth, options)));
      roots.push_back(r), momenta.push_back(v);
    }
    const TensorView views[] = {weight.view(), root.view(), momentum.view(), grad.view()};
    balanced_sgd<Device>(views, views + 1, with_momenta ? views + 2 : nullptr, views + 3, 1, depth, options,
                         measured.wanted<Device>({views[0]}), nullptr);
    const std::string what = label(form, depth, kDType<W>, "balanced_sgd");
    check_result(weight, before, weights, what + ", weight");
    measured.check(0, weight, &root, 1, what);  // the squares of all factors are the root's
    check_result(root, old_root, roots, what + ", root");
    check_result(momentum, old_momentum, momenta, what + ", momentum");
  }
}

#define BALANCED_LAUNCHER_TESTS(Device)                                                                          \
  TEST(balanced_sgd_equals_a_loop) {                                                                             \
    test::for_each_case([](const test::Form& form, int64_t depth, int variant) {                                 \
      test::for_each_dtype(                                                                                      \
          [&](auto x) { test::balanced_step_in<Device, decltype(x)>(form, depth, variant, variant % 3 == 1); }); \
    });                                                                                                          \
  }

}  // namespace sparsenn::test
