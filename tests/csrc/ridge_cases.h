// The launchers of the norm of ridge nets against loops in long double, for any device.
#pragma once

#include <deque>

#include "check.h"
#include "math/ridge_norm.h"
#include "tensors.h"

namespace sparsenn::test {

inline int sign_of(double x) { return (x > 0) - (x < 0); }

// Matrices of every kind, among them more columns and more numbers than are held at a time, and empty ones.
template <class Device, class T>
void ridge_norm_in() {
  using A = accumulator_t<T>;
  constexpr NormKind kKinds[] = {NormKind::squared_columns, NormKind::squares, NormKind::magnitudes};
  const int64_t shapes[][2] = {{3, 5}, {16, 1296}, {1, 1}, {2, 5000}, {0, 4}, {4, 0}, {71, 600}};
  std::deque<Tensor<T>> data, grads;
  std::vector<NormTerm> terms;
  std::vector<std::vector<long double>> slopes;
  long double total = 0;
  for (const NormKind kind : kKinds) {
    for (const auto& [rows, columns] : shapes) {
      const Shape sizes{rows, columns};
      data.emplace_back(sizes, row_major(sizes), 1).fill(terms.size());
      grads.emplace_back(sizes, row_major(sizes), 1).fill(99);
      std::vector<long double> norms(columns, 0);
      for (int64_t i = 0; i < rows * columns; ++i) norms[i % columns] += std::fabs(load(data.back().at(i)));
      std::vector<long double>& own = slopes.emplace_back();
      for (int64_t i = 0; i < rows * columns; ++i) {
        const long double x = load(data.back().at(i));
        if (kind == NormKind::squares) total += x * x;
        if (kind == NormKind::magnitudes) total += std::fabs(x);
        own.push_back(kind == NormKind::squares      ? 2 * x
                      : kind == NormKind::magnitudes ? sign_of(x)
                                                     : 2 * norms[i % columns] * sign_of(x));
      }
      for (int64_t k = 0; kind == NormKind::squared_columns && k < columns; ++k) total += norms[k] * norms[k];
      terms.push_back({kind, rows, columns, data.back().view().data, grads.back().view().data});
    }
  }
  const int64_t count = static_cast<int64_t>(terms.size());
  std::vector<char> workspace(ridge_norm_workspace<Device>(terms.data(), count) + 1, 0x7f);
  A found(-1);
  ridge_norm<Device>(kDType<T>, terms.data(), count, &found, workspace.data(), nullptr);
  CHECK(std::fabs(found - total) <= (sizeof(A) == 8 ? 1e-13 : 1e-6) * total, "the norm is ", found, ", not ",
        static_cast<double>(total));
  CHECK(workspace.back() == 0x7f, "memory behind the workspace has changed");

  const A scale(0.5);
  const std::deque<Tensor<T>> before = grads;
  ridge_norm_backward<Device>(kDType<T>, terms.data(), count, &scale, nullptr);
  const double rounding[] = {1e-13, 1e-6, 5e-3, 6e-4};  // by DType
  for (int64_t n = 0; n < count; ++n) {
    Tensor<T> ideal = before[n];
    for (size_t i = 0; i < slopes[n].size(); ++i) {
      const long double slope = 0.5L * slopes[n][i];
      const T got = grads[n].at(i);
      CHECK(std::fabs(load(got) - slope) <= rounding[static_cast<int>(kDType<T>)] * std::fabs(slope), "slope ", i,
            " of term ", n, " is ", load(got), ", not ", static_cast<double>(slope));
      ideal.at(i) = got;
    }
    CHECK(same_bits(grads[n].memory(), ideal.memory()), "memory around the gradient of term ", n, " has changed");
  }
}

#define RIDGE_TESTS(Device)                                                           \
  TEST(ridge_norm_equals_a_loop) {                                                    \
    test::for_each_dtype([](auto x) { test::ridge_norm_in<Device, decltype(x)>(); }); \
  }                                                                                   \
  TEST(ridge_norm_of_nothing_is_zero) {                                               \
    float found = -1;                                                                 \
    char workspace = 0;                                                               \
    ridge_norm<Device>(DType::float32, nullptr, 0, &found, &workspace, nullptr);      \
    CHECK(found == 0, "the norm of no matrices is ", found);                          \
  }

}  // namespace sparsenn::test
