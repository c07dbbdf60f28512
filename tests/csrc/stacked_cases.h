// What holds for stacked_steps on every device.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "launchers.h"
#include "math/activation.h"
#include "math/permutation.h"
#include "math/stacked_steps.h"
#include "tensors.h"

namespace sparsenn::test {

// The tensors of a call, and the call.
template <class T>
struct StackedCase {
  std::vector<PatchLayer> layers;
  int64_t samples, batch, rows, parameters = 0;
  bool labels;
  std::vector<T> weights, state, x, y;
  std::vector<int64_t> classes;
  std::vector<double> losses;
  std::vector<StackedRun> runs;

  StackedCase(std::vector<PatchLayer> structure, std::vector<StackedRun> given, int64_t samples, int64_t batch,
              bool labels)
      : layers(std::move(structure)), samples(samples), batch(batch), rows(16), labels(labels), runs(std::move(given)) {
    for (const PatchLayer& l : layers) parameters += l.filters * l.out_channels * (l.in_channels * l.kernel + l.bias);
    std::mt19937_64 random(7);
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<T>& to, int64_t size, double scale) {
      for (int64_t i = 0; i < size; ++i) to.push_back(static_cast<T>(scale * normal(random)));
    };
    const int64_t count = static_cast<int64_t>(runs.size());
    fill(weights, count * parameters, 0.4);
    fill(x, 2 * samples * layers[0].in_channels * layers[0].length, 1);
    fill(y, 2 * samples * outputs(), 1);
    for (int64_t i = 0; i < 2 * samples; ++i) classes.push_back(static_cast<int64_t>(random() % outputs()));
    state.assign(count * rows * parameters, T(0.3));
    losses.assign(2 * count, 0.0);
  }

  int64_t outputs() const { return layers.back().out_channels * (layers.back().length / layers.back().kernel); }

  template <class Device>
  void train(int64_t epoch, int64_t first, int64_t steps) {
    const Stack stack{kDType<T>,
                      weights.data(),
                      state.data(),
                      parameters,
                      rows,
                      losses.data(),
                      x.data(),
                      labels ? static_cast<const void*>(classes.data()) : y.data(),
                      labels,
                      2,
                      samples,
                      layers.data(),
                      static_cast<int64_t>(layers.size()),
                      batch,
                      epoch,
                      first,
                      steps};
    const int64_t count = static_cast<int64_t>(runs.size());
    std::vector<double> workspace(stacked_workspace<Device>(stack, count) / 8 + 2);
    stacked_steps<Device>(stack, runs.data(), count, workspace.data(), nullptr);
  }
};

inline StackedRun stacked_run(int64_t index, Activation activation, Activation last, Optimizer optimizer,
                              WeightPenalty penalty, int64_t depth = 2) {
  return {index, 40 + index, index % 2, depth, activation, last, optimizer, penalty,
          0.02,  1e-3,       0.9,       0.9,   0.99,       1e-8, 0,         index % 3 * 1e-2};
}

// One of every kind.
inline std::vector<StackedRun> stacked_runs() {
  using A = Activation;
  using O = Optimizer;
  using P = WeightPenalty;
  return {stacked_run(0, A::relu, A::identity, O::sgd, P::none),
          stacked_run(1, A::tanh, A::tanh, O::sgd, P::l1),
          stacked_run(2, A::sigmoid, A::relu, O::sgd, P::l2),
          stacked_run(3, A::gelu, A::identity, O::prox, P::none),
          stacked_run(4, A::tanh, A::gelu, O::factorized, P::none, 3),
          stacked_run(5, A::relu, A::identity, O::adam, P::l1),
          stacked_run(6, A::tanh, A::tanh, O::sgd, P::l1)};
}

inline const std::vector<PatchLayer> kPatches = {{2, 7, 3, 2, 2, true}, {3, 3, 4, 3, 1, true}, {4, 1, 2, 1, 1, false}};
inline const std::vector<PatchLayer> kDense = {
    {11, 1, 37, 1, 1, true}, {37, 1, 23, 1, 1, false}, {23, 1, 3, 1, 1, true}};

// The mean loss of samples by plain loops.
template <class T>
double plain_loss(const StackedCase<T>& in, const StackedRun& run, const std::vector<double>& weights,
                  const std::vector<int64_t>& samples) {
  double total = 0;
  for (const int64_t sample : samples) {
    const int64_t width = in.layers[0].in_channels * in.layers[0].length, at = run.data * in.samples + sample;
    std::vector<double> a(in.x.begin() + at * width, in.x.begin() + (at + 1) * width);
    const double* w = weights.data();
    for (size_t n = 0; n < in.layers.size(); ++n) {
      const PatchLayer& l = in.layers[n];
      const int64_t positions = l.length / l.kernel, patch = l.in_channels * l.kernel;
      const double* const biases = w + l.filters * l.out_channels * patch;
      std::vector<double> z(l.out_channels * positions);
      for (int64_t o = 0; o < l.out_channels; ++o) {
        for (int64_t p = 0; p < positions; ++p) {
          const int64_t filter = p % l.filters * l.out_channels + o;
          double sum = l.bias ? biases[filter] : 0;
          for (int64_t k = 0; k < patch; ++k) {
            sum += w[filter * patch + k] * a[k / l.kernel * l.length + p * l.kernel + k % l.kernel];
          }
          z[o * positions + p] = n + 1 < in.layers.size() ? std::tanh(sum) : sum;
        }
      }
      w = biases + (l.bias ? l.filters * l.out_channels : 0);
      a = z;
    }
    const int64_t outputs = in.outputs();
    double entropy = 0, squares = 0;
    for (int64_t n = 0; n < outputs; ++n) {
      entropy += std::exp(a[n]);
      squares += (a[n] - in.y[at * outputs + n]) * (a[n] - in.y[at * outputs + n]) / outputs;
    }
    total += in.labels ? std::log(entropy) - a[in.classes[at]] : squares;
  }
  return total / static_cast<double>(samples.size());
}

// A step of plain gradient descent is the derivative of the loss, by differences.
template <class Device>
void steps_follow_differences(const std::vector<PatchLayer>& layers, bool labels) {
  StackedRun run = stacked_run(0, Activation::tanh, Activation::identity, Optimizer::sgd, WeightPenalty::none);
  run.momentum = 0, run.lr = 1, run.weight_decay = 0;
  StackedCase<double> made(layers, {run}, 13, 5, labels);
  for (const int64_t step : {1, 2}) {
    const std::vector<double> before = made.weights;
    made.losses.assign(2, 0);
    made.train<Device>(3, step, 1);
    const Permutation order(13, run.seed, 3);
    std::vector<int64_t> samples;
    for (int64_t i = 5 * step; i < std::min<int64_t>(13, 5 * step + 5); ++i) samples.push_back(order(i));
    const double loss = plain_loss(made, run, before, samples);
    CHECK(std::fabs(made.losses[0] - loss) < 1e-12, "the loss is ", made.losses[0], ", not ", loss);
    for (size_t i = 0; i < before.size(); ++i) {
      std::vector<double> up = before, down = before;
      up[i] += 1e-5, down[i] -= 1e-5;
      const double slope = (plain_loss(made, run, up, samples) - plain_loss(made, run, down, samples)) / 2e-5;
      CHECK(std::fabs(before[i] - made.weights[i] - slope) < 1e-7, "weight ", i, " moved by ",
            made.weights[i] - before[i], ", not ", -slope);
    }
  }
}

// A run alone, and with its steps in two calls, is what it is in company.
template <class T, class Device>
void company_does_not_matter(const std::vector<PatchLayer>& layers) {
  StackedCase<T> together(layers, stacked_runs(), 29, 8, false);
  const StackedCase<T> start = together;
  together.template train<Device>(2, 0, 4);
  for (const StackedRun& run : start.runs) {
    StackedCase<T> alone = start;
    alone.runs = {run};
    alone.template train<Device>(2, 0, 1);
    alone.template train<Device>(2, 1, 3);
    const int64_t size = start.parameters, of_state = start.rows * size;
    const auto same = [&](const std::vector<T>& a, const std::vector<T>& b, int64_t count) {
      return std::memcmp(a.data() + run.index * count, b.data() + run.index * count, sizeof(T) * count) == 0;
    };
    CHECK(same(alone.weights, together.weights, size), "the weights of run ", run.index, " differ");
    CHECK(same(alone.state, together.state, of_state), "the state of run ", run.index, " differs");
    CHECK(alone.losses[2 * run.index] == together.losses[2 * run.index], "the loss of run ", run.index, " differs");
    CHECK(alone.losses[2 * run.index + 1] == together.losses[2 * run.index + 1], "the penalty differs");
  }
}

#define STACKED_TESTS(Device)                                                                                 \
  TEST(stacked_patches_follow_differences) { test::steps_follow_differences<Device>(test::kPatches, false); } \
  TEST(stacked_dense_follow_differences) { test::steps_follow_differences<Device>(test::kDense, false); }     \
  TEST(stacked_labels_follow_differences) { test::steps_follow_differences<Device>(test::kPatches, true); }   \
  TEST(stacked_patches_alone_float32) { test::company_does_not_matter<float, Device>(test::kPatches); }       \
  TEST(stacked_patches_alone_float64) { test::company_does_not_matter<double, Device>(test::kPatches); }      \
  TEST(stacked_dense_alone_float32) { test::company_does_not_matter<float, Device>(test::kDense); }           \
  TEST(stacked_dense_alone_float64) { test::company_does_not_matter<double, Device>(test::kDense); }

}  // namespace sparsenn::test
