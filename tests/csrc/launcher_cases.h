// The launchers against a loop over single weights, bit for bit, in every dtype, depth and layout: for any device.
#pragma once

#include <cmath>
#include <limits>

#include "check.h"
#include "measured.h"
#include "tensors.h"

namespace sparsenn::test {

inline std::vector<int64_t> depths() { return {1, 2, 3, 4, 5, 6, 7, 8, 9, 12}; }

template <class T>
using Values = std::vector<T>;

template <class T>
Values<T> others_of(const Values<T>& factors) {
  Values<T> others(factors.size());
  for (size_t d = 0; d < factors.size(); ++d) {
    T prefix = 1, suffix = 1;
    for (size_t k = 0; k < d; ++k) prefix *= factors[k];
    for (size_t k = factors.size() - 1; k > d; --k) suffix *= factors[k];
    others[d] = prefix * suffix;
  }
  return others;
}

template <class T>
T product_of(const Values<T>& factors) {
  T result = factors[0];
  for (size_t d = 1; d < factors.size(); ++d) result *= factors[d];
  return result;
}

// The step as torch.optim.SGD rounds it, fused multiply-adds included.
template <class T>
void scalar_step(T grad, Values<T>& factors, Values<T>& momenta, const FactorizedSgdOptions& options) {
  const T lr = static_cast<T>(options.lr.value),
          decay = static_cast<T>(2.0 * options.lam.value / double(factors.size()));
  const T weight_decay = static_cast<T>(options.weight_decay), momentum = static_cast<T>(options.momentum);
  const Values<T> others = others_of(factors);
  if (options.maximize) grad = -grad;
  if (weight_decay != 0) grad = std::fma(product_of(factors), weight_decay, grad);
  for (size_t d = 0; d < factors.size(); ++d) {
    T step = grad * others[d];
    if (decay != 0) step = std::fma(factors[d], decay, step);
    if (!momenta.empty()) {
      momenta[d] = std::fma(step, static_cast<T>(1.0 - options.dampening), momenta[d] * momentum);
      step = options.nesterov ? std::fma(momenta[d], momentum, step) : momenta[d];
    }
    factors[d] = std::fma(step, -lr, factors[d]);
  }
}

template <class T>
Values<accumulator_t<T>> loaded(std::vector<Tensor<T>>& tensors, int64_t i) {
  Values<accumulator_t<T>> values;
  for (Tensor<T>& tensor : tensors) values.push_back(load(tensor.at(i)));
  return values;
}

template <class T>
std::vector<Tensor<T>> filled(const Form& form, int64_t count, uint64_t seed, bool written = false) {
  std::vector<Tensor<T>> tensors;
  for (int64_t k = 0; k < count; ++k) {
    tensors.emplace_back(form.sizes, written ? output_strides(form) : input_strides(form, k), form.shift);
    tensors.back().fill(seed * 100 + k);
  }
  return tensors;
}

// Compares all memory of a tensor with what it was before, but for the elements, which are to hold `expected`.
template <class T>
void check_result(Tensor<T>& tensor, const Tensor<T>& before, const Values<T>& expected, const std::string& what) {
  Tensor<T> ideal = before;
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(same_bits(tensor.at(i), expected[i]), what, ": element ", i, " is ", load(tensor.at(i)), ", not ",
          load(expected[i]));
    ideal.at(i) = expected[i];
  }
  CHECK(same_bits(tensor.memory(), ideal.memory()), what, ": memory between or around the elements has changed");
}

inline std::string label(const Form& form, int64_t depth, DType dtype, const char* what) {
  static const char* const names[] = {"float64", "float32", "bfloat16", "float16"};
  return std::string(what) + ", " + form.name + ", depth " + std::to_string(depth) + ", " +
         names[static_cast<int>(dtype)];
}

template <class Device, class T>
void product_in(const Form& form, int64_t depth) {
  const std::string what = label(form, depth, kDType<T>, "hadamard");
  std::vector<Tensor<T>> factors = filled<T>(form, depth, 1);
  Tensor<T> out = filled<T>(form, 1, 2, true)[0];
  const Tensor<T> before = out;
  Values<T> expected;
  for (int64_t i = 0; i < out.numel(); ++i) expected.push_back(store<T>(product_of(loaded(factors, i))));
  if (out.numel()) hadamard<Device>(views_of(factors).data(), depth, out.view(), nullptr);
  check_result(out, before, expected, what);
  // Into the first factor, where it does not overlap itself.
  if (input_strides(form, 0) != output_strides(form) || out.numel() == 0) return;
  const Tensor<T> first = factors[0];
  hadamard<Device>(views_of(factors).data(), depth, factors[0].view(), nullptr);
  check_result(factors[0], first, expected, what + ", in place");
}

template <class Device, class T>
void gradients_in(const Form& form, int64_t depth) {
  std::vector<Tensor<T>> factors = filled<T>(form, depth, 1), grads = filled<T>(form, depth, 3, true);
  Tensor<T> grad = filled<T>(form, depth + 1, 2).back();
  const std::vector<Tensor<T>> before = grads;
  std::vector<Values<T>> expected(depth);
  for (int64_t i = 0; i < grad.numel(); ++i) {
    const auto others = others_of(loaded(factors, i));
    for (int64_t d = 0; d < depth; ++d) expected[d].push_back(store<T>(load(grad.at(i)) * others[d]));
  }
  if (grad.numel()) {
    hadamard_backward<Device>(grad.view(), views_of(factors).data(), depth, views_of(grads).data(), nullptr);
  }
  for (int64_t d = 0; d < depth; ++d) {
    check_result(grads[d], before[d], expected[d], label(form, depth, kDType<T>, "hadamard_backward"));
  }
}

// The weights of one step, and what they should become.
template <class W>
struct StepCase {
  using T = accumulator_t<W>;
  std::vector<Tensor<W>> weights, grads;
  std::vector<Tensor<T>> factors, momenta;
  int64_t depth;
  Measured measured;

  void add(const Form& form, int64_t depth_of_all, bool with_momenta, uint64_t seed) {
    depth = depth_of_all;
    weights.push_back(filled<W>(form, 1, seed, true)[0]);
    grads.push_back(filled<W>(form, depth + 1, seed + 1)[depth]);
    for (auto& tensor : filled<T>(form, depth, seed + 2, true)) factors.push_back(tensor);
    if (!with_momenta) return;
    for (auto& tensor : filled<T>(form, depth, seed + 3, true)) momenta.push_back(tensor);
  }

  template <class Device>
  void step(const FactorizedSgdOptions& options) {
    const auto views = views_of(weights);
    factorized_sgd<Device>(views.data(), views_of(factors).data(), momenta.empty() ? nullptr : views_of(momenta).data(),
                           views_of(grads).data(), views.size(), depth, options,
                           measured.template wanted<Device>(views), nullptr);
  }

  // options: with lr and lam as numbers of the host.
  void check_step_from(const StepCase& before, const FactorizedSgdOptions& options, const std::string& what) {
    StepCase old = before;
    for (size_t n = 0; n < weights.size(); ++n) {
      Values<W> weight;
      std::vector<Values<T>> factor(depth), momentum(depth);
      for (int64_t i = 0; i < weights[n].numel(); ++i) {
        Values<T> values, velocities;
        for (int64_t d = 0; d < depth; ++d) {
          values.push_back(old.factors[n * depth + d].at(i));
          if (!momenta.empty()) velocities.push_back(old.momenta[n * depth + d].at(i));
        }
        scalar_step(load(old.grads[n].at(i)), values, velocities, options);
        weight.push_back(store<W>(product_of(values)));
        for (int64_t d = 0; d < depth; ++d) {
          factor[d].push_back(values[d]);
          if (!momenta.empty()) momentum[d].push_back(velocities[d]);
        }
      }
      check_result(weights[n], before.weights[n], weight, what + ", weight");
      measured.check(n, weights[n], factors.data() + n * depth, depth, what);
      for (int64_t d = 0; d < depth; ++d) {
        check_result(factors[n * depth + d], before.factors[n * depth + d], factor[d], what + ", factor");
        if (!momenta.empty()) {
          check_result(momenta[n * depth + d], before.momenta[n * depth + d], momentum[d], what + ", momentum");
        }
      }
    }
  }
};

inline FactorizedSgdOptions step_options(int variant) {
  FactorizedSgdOptions options{{0.15, nullptr, false}, {6e-4, nullptr, false}, 0.9, 0, 0, false, false};
  if (variant % 4 == 1) options.nesterov = true, options.weight_decay = 1e-2;
  if (variant % 4 == 2) options.dampening = 0.3, options.maximize = true;
  if (variant % 4 == 3) options.lam.value = 0;
  return options;
}

template <class Device, class W>
void step_in(const Form& form, int64_t depth, int variant) {
  for (const bool with_momenta : {false, true}) {
    FactorizedSgdOptions options = step_options(variant);
    if (!with_momenta) options.momentum = 0, options.nesterov = false;
    for (const bool measures : {false, true}) {
      StepCase<W> run;
      run.add(form, depth, with_momenta, 5);
      if (!measures) run.add(form, depth, with_momenta, 9);  // a second weight, which no pointer may reach from null
      run.measured.on = measures;
      const StepCase<W> before = run;
      run.template step<Device>(options);
      run.check_step_from(before, options, label(form, depth, kDType<W>, "factorized_sgd"));
    }
  }
}

template <class Body>
void for_each_dtype(const Body& body) {
  body(double{}), body(float{}), body(bfloat16{}), body(float16{});
}

template <class Body>
void for_each_case(const Body& body) {
  int variant = 0;
  for (const Form& form : forms()) {
    for (const int64_t depth : depths()) body(form, depth, variant++);
  }
}

#define LAUNCHER_TESTS(Device)                                                                         \
  TEST(hadamard_equals_a_loop) {                                                                       \
    test::for_each_case([](const test::Form& form, int64_t depth, int) {                               \
      test::for_each_dtype([&](auto x) { test::product_in<Device, decltype(x)>(form, depth); });       \
    });                                                                                                \
  }                                                                                                    \
  TEST(hadamard_backward_equals_a_loop) {                                                              \
    test::for_each_case([](const test::Form& form, int64_t depth, int) {                               \
      test::for_each_dtype([&](auto x) { test::gradients_in<Device, decltype(x)>(form, depth); });     \
    });                                                                                                \
  }                                                                                                    \
  TEST(factorized_sgd_equals_a_loop) {                                                                 \
    test::for_each_case([](const test::Form& form, int64_t depth, int variant) {                       \
      test::for_each_dtype([&](auto x) { test::step_in<Device, decltype(x)>(form, depth, variant); }); \
    });                                                                                                \
  }

}  // namespace sparsenn::test
