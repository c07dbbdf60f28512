// The launcher of Adam on factors against a loop over single numbers, bit for bit, in every dtype, depth and layout:
// for any device.
#pragma once

#include <cmath>
#include <limits>

#include "launcher_cases.h"

namespace sparsenn::test {

// What belongs to one factor.
template <class T>
struct Moments {
  T factor, mean, squares, largest;
};

// The step as torch.optim.Adam (AdamW) rounds it, fused multiply-adds included; `count` is that of this step.
template <class T>
void scalar_adam_step(T grad, Values<Moments<T>>& all, bool with_largest, double count,
                      const FactorizedAdamOptions& options) {
  const double lr = options.lr.value, pull = 2.0 * options.lam.value / double(all.size());
  const T pace = static_cast<T>(-(lr / (1.0 - std::pow(options.beta1, count)))),
          root = static_cast<T>(std::pow(1.0 - std::pow(options.beta2, count), 0.5));
  const T weight = static_cast<T>(1.0 - options.beta1), decay = static_cast<T>(pull),
          weight_decay = static_cast<T>(options.weight_decay);
  Values<T> factors;
  for (const Moments<T>& own : all) factors.push_back(own.factor);
  const Values<T> others = others_of(factors);
  if (options.maximize) grad = -grad;
  if (weight_decay != 0) grad = std::fma(product_of(factors), weight_decay, grad);
  for (size_t d = 0; d < all.size(); ++d) {
    auto& [factor, mean, squares, largest] = all[d];
    T own = grad * others[d];
    if (!options.decoupled && decay != 0) own = std::fma(factor, decay, own);
    // torch.lerp
    mean = weight < T(0.5) ? std::fma(weight, own - mean, mean) : std::fma(weight - T(1), own - mean, own);
    squares = std::fma(static_cast<T>(1.0 - options.beta2) * own, own, squares * static_cast<T>(options.beta2));
    if (with_largest) largest = std::isnan(largest) || largest > squares ? largest : squares;
    const T size = std::sqrt(with_largest ? largest : squares) / root + static_cast<T>(options.eps);
    if (options.decoupled) factor *= static_cast<T>(1.0 - lr * pull);
    factor += pace * mean / size;
  }
}

template <class T>
std::vector<Tensor<T>> positive(const Form& form, int64_t count, uint64_t seed) {
  std::vector<Tensor<T>> tensors = filled<T>(form, count, seed, true);
  for (Tensor<T>& tensor : tensors) {
    for (int64_t i = 0; i < tensor.numel(); ++i) tensor.at(i) = std::fabs(tensor.at(i)) + T(0.1);
  }
  return tensors;
}

// The weights of one step, and what they should become.
template <class W>
struct AdamCase {
  using T = accumulator_t<W>;
  std::vector<Tensor<W>> weights, grads;
  std::vector<Tensor<T>> factors, means, squares, largest;
  std::vector<float> steps;
  int64_t depth;
  Measured measured;

  void add(const Form& form, int64_t depth_of_all, bool with_largest, uint64_t seed) {
    depth = depth_of_all;
    weights.push_back(filled<W>(form, 1, seed, true)[0]);
    grads.push_back(filled<W>(form, depth + 1, seed + 1)[depth]);
    for (auto& tensor : filled<T>(form, depth, seed + 2, true)) factors.push_back(tensor);
    for (auto& tensor : filled<T>(form, depth, seed + 3, true)) means.push_back(tensor);
    for (auto& tensor : positive<T>(form, depth, seed + 4)) squares.push_back(tensor);
    steps.push_back(static_cast<float>(steps.size() % 3));
    if (!with_largest) return;
    for (auto& tensor : positive<T>(form, depth, seed + 5)) largest.push_back(tensor);
  }

  template <class Device>
  void step(const FactorizedAdamOptions& options) {
    std::vector<TensorView> counts;
    for (float& taken : steps) counts.push_back({&taken, DType::float32, 1, 0, nullptr, nullptr});
    const auto weight = views_of(weights), factor = views_of(factors), mean = views_of(means),
               square = views_of(squares), most = views_of(largest), grad = views_of(grads);
    const int64_t count = static_cast<int64_t>(weights.size());
    std::vector<char> workspace(factorized_adam_workspace<Device>(count));
    factorized_adam<Device>({weight.data(), factor.data(), mean.data(), square.data(),
                             largest.empty() ? nullptr : most.data(), counts.data(), grad.data(), count, depth},
                            options, measured.template wanted<Device>(weight), workspace.data(), nullptr);
  }

  // options: with lr and lam as numbers of the host.
  void check_step_from(const AdamCase& before, const FactorizedAdamOptions& options, const std::string& what) {
    AdamCase old = before;
    const bool with_largest = !largest.empty();
    for (size_t n = 0; n < weights.size(); ++n) {
      const std::string own = what + ", weight " + std::to_string(n);
      CHECK(steps[n] == before.steps[n] + 1, own, ": ", steps[n], " steps were counted");
      Values<W> weight;
      std::vector<Values<T>> expected[4];
      for (auto& kind : expected) kind.resize(depth);
      for (int64_t i = 0; i < weights[n].numel(); ++i) {
        Values<Moments<T>> moved;
        for (int64_t d = 0; d < depth; ++d) {
          const int64_t k = n * depth + d;
          moved.push_back({old.factors[k].at(i), old.means[k].at(i), old.squares[k].at(i),
                           with_largest ? old.largest[k].at(i) : T(0)});
        }
        scalar_adam_step(load(old.grads[n].at(i)), moved, with_largest, steps[n], options);
        Values<T> factors_now;
        for (int64_t d = 0; d < depth; ++d) {
          const T values[] = {moved[d].factor, moved[d].mean, moved[d].squares, moved[d].largest};
          for (int kind = 0; kind < 4; ++kind) expected[kind][d].push_back(values[kind]);
          factors_now.push_back(moved[d].factor);
        }
        weight.push_back(store<W>(product_of(factors_now)));
      }
      check_result(weights[n], before.weights[n], weight, own);
      measured.check(n, weights[n], factors.data() + n * depth, depth, own);
      for (int64_t d = 0; d < depth; ++d) {
        const int64_t k = n * depth + d;
        check_result(factors[k], before.factors[k], expected[0][d], own + ", factor");
        check_result(means[k], before.means[k], expected[1][d], own + ", mean");
        check_result(squares[k], before.squares[k], expected[2][d], own + ", squares");
        if (with_largest) check_result(largest[k], before.largest[k], expected[3][d], own + ", largest squares");
      }
    }
  }
};

inline FactorizedAdamOptions adam_options(int variant) {
  FactorizedAdamOptions options{{0.15, nullptr, false}, {6e-3, nullptr, false}, 0.9, 0.999, 1e-8, 0, false, false};
  if (variant % 4 == 1) options.decoupled = true, options.weight_decay = 1e-2;
  if (variant % 4 == 2) options.maximize = true, options.beta1 = 0.3, options.beta2 = 0.6, options.eps = 1e-3;
  if (variant % 4 == 3) options.lam.value = 0, options.beta1 = 0;
  return options;
}

template <class Device, class W>
void adam_in(const Form& form, int64_t depth, int variant) {
  if (form.sizes.size() > 8 && depth > 8) return;  // more than a CUDA launch can be told, and refused
  for (const bool with_largest : {false, true}) {
    AdamCase<W> run;
    run.add(form, depth, with_largest, 5);
    run.measured.on = variant % 3 == 1;
    const AdamCase<W> before = run;
    run.template step<Device>(adam_options(variant));
    run.check_step_from(before, adam_options(variant), label(form, depth, kDType<W>, "factorized_adam"));
  }
}

// Weights of a whole model in one call: empty, tiny, misaligned, larger than a chunk, and some that are not flat.
template <class W>
AdamCase<W> many_adam(int64_t count, int64_t depth, bool with_largest) {
  AdamCase<W> all;
  std::mt19937 random(4);
  for (int64_t n = 0; n < count; ++n) {
    Form form{"many", {static_cast<int64_t>(random() % 40)}, {{1}}, n % 5 == 3};
    if (n % 31 == 0) form.sizes = {static_cast<int64_t>(1000 + random() % 3000)};
    if (n % 50 == 7) form.sizes = {6, 7}, form.strides = {{7, 1}, {1, 6}};
    all.add(form, depth, with_largest, 10 + n);
  }
  return all;
}

#define ADAM_LAUNCHER_TESTS(Device)                                                                    \
  TEST(factorized_adam_equals_a_loop) {                                                                \
    test::for_each_case([](const test::Form& form, int64_t depth, int variant) {                       \
      test::for_each_dtype([&](auto x) { test::adam_in<Device, decltype(x)>(form, depth, variant); }); \
    });                                                                                                \
  }                                                                                                    \
  TEST(every_weight_has_the_correction_of_its_own_steps) {                                             \
    const auto before = test::many_adam<float>(60, 3, true);                                           \
    auto run = before;                                                                                 \
    run.step<Device>(test::adam_options(1));                                                           \
    run.check_step_from(before, test::adam_options(1), "60 weights");                                  \
  }

}  // namespace sparsenn::test
