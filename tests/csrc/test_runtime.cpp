// Networks of the torch-free runtime against loops in double precision, in memory of exactly their size.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "runtime/network.h"

namespace {

constexpr int64_t kPlenty = int64_t{1} << 60;
std::atomic<int64_t> allocations_left = kPlenty;  // of all threads, after which there is no memory

}  // namespace

void* operator new(size_t size) {
  if (allocations_left-- <= 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace sparsenn::runtime {
namespace {

using Random = std::mt19937;

constexpr Methods kSparse{Method::sparse, Method::sparse, Method::sparse};
constexpr Methods kDense{Method::dense, Method::dense, Method::dense};

Weights random_weights(int64_t rows, int64_t taps, double density, Random& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  Weights weights;
  weights.starts.push_back(0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t tap = 0; tap < taps && row % 5 != 3; ++tap) {
      if ((uniform(random) + 1) / 2 >= density) continue;
      weights.columns.push_back(tap);
      weights.values.push_back(uniform(random));
    }
    weights.starts.push_back(weights.values.size());
    weights.bias.push_back(uniform(random));
  }
  return weights;
}

std::vector<double> product(const std::vector<double>& x, Shape in, const Weights& weights, const Window& w,
                            bool relu) {
  const auto places = [&](int i, int64_t size) {
    return (size + 2 * w.padding[i] - w.dilation[i] * (w.kernel[i] - 1) - 1) / w.stride[i] + 1;
  };
  const int64_t height = places(0, in.height), width = places(1, in.width);
  std::vector<double> out;
  for (int64_t row = 0; row < weights.rows(); ++row) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t i = 0; i < width; ++i) {
        double sum = weights.bias[row];
        for (int32_t k = weights.starts[row]; k < weights.starts[row + 1]; ++k) {
          const int64_t tap = weights.columns[k], area = w.kernel[0] * w.kernel[1];
          const int64_t v = y * w.stride[0] - w.padding[0] + tap % area / w.kernel[1] * w.dilation[0];
          const int64_t u = i * w.stride[1] - w.padding[1] + tap % w.kernel[1] * w.dilation[1];
          if (v < 0 || u < 0 || v >= in.height || u >= in.width) continue;
          sum += static_cast<double>(weights.values[k]) * x[(tap / area * in.height + v) * in.width + u];
        }
        out.push_back(relu ? std::max(sum, 0.0) : sum);
      }
    }
  }
  return out;
}

// Prices that make a batch run one sample after the other (0), or in panels of 8, 16, 32 or 64 (1 to 4).
void finish_by(Network& network, int kind) {
  Prices prices{{1, 1, 1}, {1, 1, 1, 1}};
  double* chosen = kind ? prices.panel + kind - 1 : prices.samples;
  std::fill_n(chosen, kind ? 1 : 3, 1e-9);
  network.finish(prices);
}

void compare(const Network& network, const std::vector<float>& x, const std::vector<double>& expected, int64_t count,
             const char* what) {
  std::vector<float> out(count * network.features_out());
  network.run(x.data(), count, out.data(), 1);
  double largest = 0;
  for (double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < out.size(); ++i)
    CHECK(std::abs(out[i] - expected[i]) <= 1e-5 * largest + 1e-6, what, " at ", i, ": ", out[i], " != ", expected[i]);
}

TEST(products_in_every_method_and_panel) {
  struct Case {
    Shape in;
    Window window;
    int64_t rows;
  };
  const Case cases[] = {{{37, 1, 1}, {}, 13},
                        {{5, 1, 1}, {}, 1},
                        {{600, 1, 1}, {}, 45},
                        {{3, 7, 9}, {{3, 3}, {1, 1}, {0, 0}, {1, 1}}, 5},
                        {{2, 6, 11}, {{3, 5}, {2, 3}, {1, 2}, {1, 1}}, 14},
                        {{1, 9, 40}, {{2, 3}, {1, 2}, {2, 0}, {3, 2}}, 3},
                        {{4, 1, 30}, {{1, 4}, {1, 1}, {0, 3}, {1, 1}}, 6},
                        {{17, 1, 1}, {{1, 1}, {3, 3}, {1, 1}, {1, 1}}, 4}};
  Random random(0);
  std::normal_distribution<float> normal;
  for (const auto& [in, window, rows] : cases) {
    for (double density : {0.0, 0.2, 1.0}) {
      const Weights first = random_weights(rows, in.channels * window.kernel[0] * window.kernel[1], density, random);
      for (int method = 0; method < 2; ++method) {
        for (int kind = 0; kind < 5; ++kind) {
          Network network(in);
          const Methods how = method ? kDense : kSparse;
          network.add_product(0, first, window, true, how);
          const Shape middle = network.shape(1);
          const Weights second = random_weights(4, middle.size(), density, random);
          network.add_flatten(1);
          network.add_product(2, second, {}, false, how);
          finish_by(network, kind);
          for (int64_t count : {1, 19, 65}) {
            std::vector<float> x(count * in.size());
            for (float& value : x) value = normal(random);
            std::vector<double> expected;
            for (int64_t s = 0; s < count; ++s) {
              const std::vector<double> sample(x.begin() + s * in.size(), x.begin() + (s + 1) * in.size());
              const auto hidden = product(sample, in, first, window, true);
              const auto out = product(hidden, {middle.size(), 1, 1}, second, {}, false);
              expected.insert(expected.end(), out.begin(), out.end());
            }
            compare(network, x, expected, count, method ? "dense" : "sparse");
          }
        }
      }
    }
  }
}

TEST(one_sample_and_a_few_have_their_own_methods) {
  Random random(4);
  std::normal_distribution<float> normal;
  const Shape in{30, 1, 1};
  const Weights weights = random_weights(20, 30, 0.3, random);
  for (Method one : {Method::sparse, Method::dense}) {
    Network network(in);
    network.add_product(0, weights, {}, false, {one, one == Method::sparse ? Method::dense : Method::sparse, one});
    finish_by(network, 0);
    for (int64_t count : {1, 2, 7, 8, 12, 13, 15}) {
      std::vector<float> x(count * 30);
      for (float& value : x) value = normal(random);
      std::vector<double> expected;
      for (int64_t s = 0; s < count; ++s) {
        const auto out = product({x.begin() + s * 30, x.begin() + (s + 1) * 30}, in, weights, {}, false);
        expected.insert(expected.end(), out.begin(), out.end());
      }
      compare(network, x, expected, count, "a few");
    }
  }
}

TEST(sums_pools_and_curves) {
  Random random(1);
  std::normal_distribution<float> normal;
  for (int kind = 0; kind < 5; ++kind) {
    Network network({2, 4, 6});
    network.add_affine(0, {2, -1}, {0.5f, 0}, false);
    network.add_sum(0, 1, true);
    network.add_pool(2, true, {{0, 2}, {2, 4}, {0.5f, 0.5f}}, {{0, 2, 4}, {2, 4, 6}, {0.5f, 0.5f, 0.5f}});
    network.add_pool(3, false, {{0}, {2}, {1}}, {{0, 1}, {2, 3}, {1, 1}});
    network.add_curve(4, Curve::tanh);
    network.add_softmax(5);
    finish_by(network, kind);
    const int64_t count = 21;
    std::vector<float> x(count * 48);
    for (float& value : x) value = normal(random);
    std::vector<double> expected;
    for (int64_t s = 0; s < count; ++s) {
      double curve[2][2];
      for (int c = 0; c < 2; ++c) {
        double pooled[2][3];
        for (int y = 0; y < 2; ++y) {
          for (int i = 0; i < 3; ++i) {
            pooled[y][i] = 0;
            for (int k = 0; k < 4; ++k) {
              const double v = x[s * 48 + c * 24 + (2 * y + k / 2) * 6 + 2 * i + k % 2];
              pooled[y][i] += std::max(v + (c ? -v : 2 * v + 0.5), 0.0) / 4;
            }
          }
        }
        for (int i = 0; i < 2; ++i)
          curve[c][i] =
              std::tanh(std::max(std::max(pooled[0][i], pooled[0][i + 1]), std::max(pooled[1][i], pooled[1][i + 1])));
      }
      for (int c = 0; c < 2; ++c) {
        for (int i = 0; i < 2; ++i)
          expected.push_back(std::exp(curve[c][i]) / (std::exp(curve[0][i]) + std::exp(curve[1][i])));
      }
    }
    compare(network, x, expected, count, "pools");
  }
}

TEST(threads_share_a_network) {
  Random random(2);
  Network network({50, 1, 1});
  network.add_product(0, random_weights(30, 50, 0.2, random), {}, true, kSparse);
  network.add_product(1, random_weights(7, 30, 1.0, random), {}, false, kDense);
  finish_by(network, 4);
  const std::vector<float> x(500 * 50, 0.5f);
  std::vector<float> expected(500 * 7);
  network.run(x.data(), 500, expected.data(), 1);
  std::vector<std::thread> workers;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    workers.emplace_back([&, t] {
      for (int turn = 0; turn < 10; ++turn) {
        std::vector<float> out(500 * 7);
        network.run(x.data(), 500, out.data(), 1 + t % 3);
        wrong[t] += out != expected;
      }
    });
  }
  for (std::thread& thread : workers) thread.join();
  for (int count : wrong) CHECK(count == 0, "another result in a thread");
}

// Wherever memory ends, the caller gets the result or an exception, and no thread is left behind.
TEST(threads_without_memory_end) {
  Random random(2);
  Network network({50, 1, 1});
  network.add_product(0, random_weights(30, 50, 0.2, random), {}, true, kSparse);
  finish_by(network, 4);
  const std::vector<float> x(500 * 50, 0.5f);
  std::vector<float> expected(500 * 30), out(500 * 30);
  network.run(x.data(), 500, expected.data(), 1);
  bool failed = true;
  for (int64_t left = 0; failed; ++left) {
    CHECK(left < 1000, "memory never ended");
    std::fill(out.begin(), out.end(), 0.0f);
    allocations_left = left;
    bool thrown = false;
    try {
      network.run(x.data(), 500, out.data(), 4);
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    failed = allocations_left < 0;
    allocations_left = kPlenty;
    CHECK(thrown || out == expected, "another result after ", left, " allocations");
  }
}

TEST(nan_reaches_every_output_of_its_sample) {
  for (int64_t features : {3, 8, 13, 40}) {
    for (int way = 0; way < 5; ++way) {
      Random random(3);
      Network network({features, 1, 1});
      Weights weights{{0, 1, 1}, {static_cast<int32_t>(features / 2)}, {1.0f}, {0.0f, 1.0f}};  // reads one feature
      network.add_product(0, weights, {}, true, kSparse);
      finish_by(network, way);
      for (int64_t count : {1, 3, 16, 37}) {
        for (int64_t bad = 0; bad < features; ++bad) {
          const int64_t sample = bad % count;
          std::vector<float> x(count * features, 1.0f), out(2 * count);
          x[sample * features + bad] = std::numeric_limits<float>::quiet_NaN();
          network.run(x.data(), count, out.data(), 1);
          for (int64_t i = 0; i < 2 * count; ++i)
            CHECK(std::isnan(out[i]) == (i / 2 == sample), "way ", way, ", feature ", bad, ", output ", i, " is ",
                  out[i]);
        }
      }
    }
  }
}

template <class Build>
void refused(const Build& build, const char* what) {
  try {
    build();
  } catch (const std::exception&) {
    return;
  }
  CHECK(false, what, " was taken");
}

TEST(what_does_not_fit_is_refused) {
  const auto one = [](Weights weights, Shape in = {3, 1, 1}, Window window = {}) {
    Network network(in);
    network.add_product(0, std::move(weights), window, false, kSparse);
  };
  refused([&] { one({{0, 1}, {3}, {1}, {0}}); }, "a column beyond the end");
  refused([&] { one({{0, 1}, {-1}, {1}, {0}}); }, "a negative column");
  refused([&] { one({{0, 2}, {0}, {1}, {0}}); }, "a row beyond the weights");
  refused([&] { one({{0, 1, 0}, {0}, {1}, {0, 0}}); }, "rows that descend");
  refused([&] { one({{0}, {}, {}, {0}}); }, "too few rows");
  refused([&] { one({{0, 0}, {}, {}, {0}}, {1, 2, 2}, {{3, 3}, {1, 1}, {0, 0}, {1, 1}}); },
          "a kernel larger than the input");
  refused([&] { one({{0, 0}, {}, {}, {0}}, {1, 1, 1}, {{1, 2}, {1, 2}, {0, 0}, {1, 1}}); },
          "a kernel larger than the input, by less than its stride");
  refused([&] { one({{0, 0}, {}, {}, {0}}, {1, 2, 2}, {{1, 1}, {0, 1}, {0, 0}, {1, 1}}); }, "a stride of 0");
  refused([&] { Network({2, 3, 3}).add_pool(0, true, {{0}, {4}, {1}}, {{0}, {3}, {1}}); }, "a window beyond the end");
  refused([&] { Network({2, 3, 3}).add_affine(0, {1}, {1}, false); }, "too few channels");
  refused([&] { Network({2, 3, 3}).add_relu(1); }, "a value that is not there");
}

}  // namespace
}  // namespace sparsenn::runtime

MAIN()
