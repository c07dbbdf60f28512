// The proximal launchers against a loop over single numbers, bit for bit, in every dtype and layout: for any device.
#pragma once

#include <cmath>
#include <limits>

#include "launcher_cases.h"

namespace sparsenn::test {

// sign(x) max(|x| - t, 0), with no negative zero.
template <class T>
T shrunk(T x, T threshold) {
  if (std::isnan(x) || std::isnan(threshold)) return std::numeric_limits<T>::quiet_NaN();
  if (x > threshold) return x - threshold;
  return x < -threshold ? x + threshold : T(0);
}

template <class W>
W rounded(accumulator_t<W> x) {
  const W result = store<W>(x);
  return load(result) == 0 ? W{} : result;
}

// The step as torch.optim.SGD rounds it, then the proximal map.
template <class W, class T>
W scalar_prox_step(T weight, T grad, T* momentum, T lam, bool penalized, const ProxSgdOptions& options) {
  const T lr = static_cast<T>(options.lr.value), decay = static_cast<T>(options.weight_decay),
          mu = static_cast<T>(options.momentum);
  if (options.maximize) grad = -grad;
  if (decay != 0) grad = std::fma(weight, decay, grad);
  double effective_lr = options.lr.value;
  if (momentum) {
    *momentum = std::fma(grad, static_cast<T>(1.0 - options.dampening), *momentum * mu);
    grad = options.nesterov ? std::fma(*momentum, mu, grad) : *momentum;
    effective_lr *= (1.0 - options.dampening) / (1.0 - options.momentum);
  }
  weight = std::fma(grad, -lr, weight);
  return penalized ? rounded<W>(shrunk(weight, lam * static_cast<T>(effective_lr))) : store<W>(weight);
}

// What lam is: a number, or a tensor with an element for each weight, for each row (the first dimension), or for all.
enum class Lam { zero, number, elements, rows, one };

inline Shape lam_strides(const Form& form, Lam kind, int64_t k) {
  Shape strides = kind == Lam::elements ? input_strides(form, k) : Shape(form.sizes.size(), 0);
  if (kind == Lam::rows && !strides.empty()) strides[0] = 2;
  return strides;
}

// The weights of one step, and what they should become. L is the type of lams that are tensors.
template <class W, class L = W>
struct ProxCase {
  using T = accumulator_t<W>;
  std::vector<Tensor<W>> weights, grads;
  std::vector<Tensor<T>> momenta;
  std::vector<Tensor<L>> tensors;  // lam of each weight, where it is one
  std::vector<Lam> kinds;
  std::vector<double> numbers;
  std::vector<int64_t> zeros;
  int64_t zeros_stride = 2;

  void add(const Form& form, Lam kind, bool with_momenta, uint64_t seed) {
    weights.push_back(filled<W>(form, 1, seed, true)[0]);
    grads.push_back(filled<W>(form, 2, seed + 1)[1]);
    if (with_momenta) momenta.push_back(filled<T>(form, 1, seed + 2, true)[0]);
    tensors.emplace_back(form.sizes, lam_strides(form, kind, 2), form.shift);
    tensors.back().fill(seed + 3);
    for (int64_t i = 0; i < tensors.back().numel(); ++i) {
      tensors.back().at(i) = store<L>(std::fabs(load(tensors.back().at(i))));
    }
    kinds.push_back(kind);
    numbers.push_back(kind == Lam::zero ? 0 : 0.3 + 0.01 * static_cast<double>(kinds.size()));
    zeros.assign(kinds.size() * zeros_stride, -7);
  }

  // device: where a lam that is a number lies, if not null.
  template <class Device>
  void step(const ProxSgdOptions& options, const double* device = nullptr, bool counted = true) {
    std::vector<Threshold> lams;
    for (size_t n = 0; n < kinds.size(); ++n) {
      if (kinds[n] == Lam::zero || kinds[n] == Lam::number) {
        lams.push_back({{numbers[n], nullptr, false}, {}});
        if (device) lams.back().scalar = {-1, device + n, true};
      } else {
        lams.push_back({{}, tensors[n].view()});
      }
    }
    prox_sgd<Device>(views_of(weights).data(), momenta.empty() ? nullptr : views_of(momenta).data(),
                     views_of(grads).data(), lams.data(), {counted ? zeros.data() : nullptr, zeros_stride},
                     static_cast<int64_t>(weights.size()), options, nullptr);
  }

  // options: with lr as a number of the host.
  void check_step_from(const ProxCase& before, const ProxSgdOptions& options, const std::string& what) {
    ProxCase old = before;
    for (size_t n = 0; n < weights.size(); ++n) {
      Values<W> weight;
      Values<T> momentum;
      int64_t found = 0;
      const bool number = kinds[n] == Lam::zero || kinds[n] == Lam::number;
      for (int64_t i = 0; i < weights[n].numel(); ++i) {
        T velocity = momenta.empty() ? T(0) : old.momenta[n].at(i);
        const T lam = number ? static_cast<T>(numbers[n]) : static_cast<T>(load(old.tensors[n].at(i)));
        weight.push_back(scalar_prox_step<W>(load(old.weights[n].at(i)), load(old.grads[n].at(i)),
                                             momenta.empty() ? nullptr : &velocity, lam, kinds[n] != Lam::zero,
                                             options));
        momentum.push_back(velocity);
        found += load(weight.back()) == 0;
      }
      const std::string own = what + ", weight " + std::to_string(n);
      check_result(weights[n], before.weights[n], weight, own);
      if (!momenta.empty()) check_result(momenta[n], before.momenta[n], momentum, own + ", momentum");
      CHECK(zeros[n * zeros_stride] == found, own, ": ", zeros[n * zeros_stride], " zeros, not ", found);
      CHECK(zeros[n * zeros_stride + 1] == -7, own, ": a number between the counts was written");
    }
  }
};

inline ProxSgdOptions prox_options(int variant) {
  ProxSgdOptions options{{0.15, nullptr, false}, 0.5, 0, 0, false, false};
  if (variant % 3 == 1) options.nesterov = true, options.weight_decay = 1e-2;
  if (variant % 3 == 2) options.dampening = 0.3, options.maximize = true;
  return options;
}

inline ProxSgdOptions without_momentum(ProxSgdOptions options) {
  options.momentum = 0, options.nesterov = false;
  return options;
}

template <class Device, class W, class L>
void prox_step_in(const Form& form, Lam kind, int variant) {
  for (const bool with_momenta : {false, true}) {
    const ProxSgdOptions options = with_momenta ? prox_options(variant) : without_momentum(prox_options(variant));
    ProxCase<W, L> run;
    run.add(form, kind, with_momenta, 5);
    const ProxCase<W, L> before = run;
    run.template step<Device>(options);
    run.check_step_from(before, options, label(form, static_cast<int64_t>(kind), kDType<W>, "prox_sgd, lam for depth"));
  }
}

template <class Device, class X, class L>
void soft_threshold_in(const Form& form, Lam kind) {
  using T = accumulator_t<X>;
  Tensor<X> input = filled<X>(form, 1, 1)[0], grad = filled<X>(form, 2, 2)[1], out = filled<X>(form, 1, 3, true)[0];
  Tensor<L> own(form.sizes, lam_strides(form, kind, 2), form.shift);
  own.fill(4);
  for (int64_t i = 0; i < own.numel(); ++i) own.at(i) = store<L>(std::fabs(load(own.at(i))));
  const bool number = kind == Lam::zero || kind == Lam::number;
  const double value = kind == Lam::zero ? 0 : 0.4;
  const Threshold threshold = number ? Threshold{{value, nullptr, false}, {}} : Threshold{{}, own.view()};
  const Tensor<X> before = out;
  Tensor<X> gradient = out;
  Values<X> values, gradients;
  for (int64_t i = 0; i < out.numel(); ++i) {
    const T x = load(input.at(i)), t = number ? static_cast<T>(value) : static_cast<T>(load(own.at(i)));
    values.push_back(rounded<X>(shrunk(x, t)));
    gradients.push_back(std::fabs(x) > t ? grad.at(i) : X{});
  }
  if (out.numel()) {
    soft_threshold<Device>(input.view(), threshold, out.view(), nullptr);
    soft_threshold_backward<Device>(grad.view(), input.view(), threshold, gradient.view(), nullptr);
  }
  check_result(out, before, values, label(form, static_cast<int64_t>(kind), kDType<X>, "soft_threshold"));
  check_result(gradient, before, gradients, label(form, static_cast<int64_t>(kind), kDType<X>, "its gradient"));
}

template <class Body>
void for_each_prox_case(const Body& body) {
  int variant = 0;
  for (const Form& form : forms()) {
    for (const Lam kind : {Lam::zero, Lam::number, Lam::elements, Lam::rows, Lam::one}) body(form, kind, variant++);
  }
}

#define PROX_LAUNCHER_TESTS(Device)                                                    \
  TEST(prox_sgd_equals_a_loop) {                                                       \
    test::for_each_prox_case([](const test::Form& form, test::Lam kind, int variant) { \
      test::for_each_dtype([&](auto x) {                                               \
        using W = decltype(x);                                                         \
        test::prox_step_in<Device, W, W>(form, kind, variant);                         \
        test::prox_step_in<Device, W, accumulator_t<W>>(form, kind, variant);          \
      });                                                                              \
    });                                                                                \
  }                                                                                    \
  TEST(soft_threshold_equals_a_loop) {                                                 \
    test::for_each_prox_case([](const test::Form& form, test::Lam kind, int) {         \
      test::for_each_dtype([&](auto x) {                                               \
        using X = decltype(x);                                                         \
        test::soft_threshold_in<Device, X, X>(form, kind);                             \
        test::soft_threshold_in<Device, X, accumulator_t<X>>(form, kind);              \
      });                                                                              \
    });                                                                                \
  }

}  // namespace sparsenn::test
