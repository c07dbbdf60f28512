// The launchers of spectral weights against loops in long double, and the weight itself bit for bit: for any device.
#pragma once

#include "check.h"
#include "tensors.h"

namespace sparsenn::test {

constexpr double kUnit[] = {0x1p-53, 0x1p-24, 0x1p-8, 0x1p-11};  // half the spacing of numbers at 1, by DType

// phi and the eigenvalues that there are, and room for their gradients.
template <class T>
struct SpectralCase {
  int64_t out, in, kernel;
  bool has_in, has_out;
  Tensor<T> phi, lambda_in, lambda_out, grad, phi_grad, in_grad, out_grad;

  SpectralCase(int64_t out, int64_t in, int64_t kernel, int kind, int64_t shift = 0)
      : out(out),
        in(in),
        kernel(kernel),
        has_in(kind != 1),
        has_out(kind != 0),
        phi(shifted({out, in, kernel}, shift, 1)),
        lambda_in(shifted({in}, 0, 2)),
        lambda_out(shifted({out}, 0, 3)),
        grad(shifted({out, in, kernel}, shift, 4)),
        phi_grad(shifted({out, in, kernel}, shift, 5)),
        in_grad(shifted({in}, 0, 6)),
        out_grad(shifted({out}, 0, 7)) {}

  static Tensor<T> shifted(const Shape& sizes, int64_t shift, uint64_t seed) {
    return Tensor<T>(sizes, row_major(sizes), shift).fill(seed);
  }

  Spectrum spectrum() {
    return {kDType<T>,
            out,
            in,
            kernel,
            phi.view().data,
            has_in ? lambda_in.view().data : nullptr,
            has_out ? lambda_out.view().data : nullptr};
  }

  SpectralGradients gradients() {
    return {phi_grad.view().data, has_in ? in_grad.view().data : nullptr, has_out ? out_grad.view().data : nullptr,
            nullptr, nullptr};
  }

  accumulator_t<T> scale(int64_t o, int64_t i) {
    using A = accumulator_t<T>;
    if (!has_in) return -load(lambda_out.at(o));
    return load(lambda_in.at(i)) - (has_out ? load(lambda_out.at(o)) : A(0));
  }

  std::string label(const char* what) const {
    std::ostringstream text;
    text << what << ", " << out << " x " << in << " x " << kernel << (has_in ? ", in" : "") << (has_out ? ", out" : "")
         << ", dtype " << static_cast<int>(kDType<T>);
    return text.str();
  }
};

template <class T>
void check_all(Tensor<T>& tensor, const Tensor<T>& before, const std::vector<T>& expected, const std::string& what) {
  Tensor<T> ideal = before;
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(same_bits(tensor.at(i), expected[i]), what, ": entry ", i, " is ", load(tensor.at(i)), ", not ",
          load(expected[i]));
    ideal.at(i) = expected[i];
  }
  CHECK(same_bits(tensor.memory(), ideal.memory()), what, ": memory around it has changed");
}

// A sum of `terms` numbers below 4, accumulated with T's accumulator and rounded once.
template <class T>
void check_sum(T found, long double truth, int64_t terms, const std::string& what) {
  const long double rounding = kUnit[static_cast<int>(kDType<T>)] * (std::fabs(truth) + 1);
  const long double adding = (sizeof(accumulator_t<T>) == 8 ? 0x1p-53L : 0x1p-24L) * 8 * (terms + 2);
  CHECK(std::fabs(load(found) - truth) <= rounding + adding, what, " is ", load(found), ", not ",
        static_cast<double>(truth));
}

template <class Device, class T>
void weight_in(int64_t out, int64_t in, int64_t kernel, int kind, int64_t shift) {
  SpectralCase<T> run(out, in, kernel, kind, shift);
  Tensor<T> weight = run.shifted({out, in, kernel}, shift, 9);
  const Tensor<T> before = weight;
  std::vector<T> expected;
  for (int64_t n = 0; n < run.phi.numel(); ++n) {
    expected.push_back(store<T>(run.scale(n / (in * kernel), n / kernel % in) * load(run.phi.at(n))));
  }
  spectral_weight<Device>(run.spectrum(), weight.view().data, nullptr);
  check_all(weight, before, expected, run.label("spectral_weight"));
}

template <class Device, class T>
void weight_backward_in(int64_t out, int64_t in, int64_t kernel, int kind, int64_t shift, bool in_place) {
  SpectralCase<T> run(out, in, kernel, kind, shift);
  const std::string what = run.label("spectral_weight_backward");
  const Tensor<T> before = in_place ? run.grad : run.phi_grad;
  std::vector<T> expected;
  std::vector<long double> columns(in), rows(out);
  for (int64_t n = 0; n < run.phi.numel(); ++n) {
    const int64_t o = n / (in * kernel), i = n / kernel % in;
    expected.push_back(store<T>(run.scale(o, i) * load(run.grad.at(n))));
    const long double pull = static_cast<long double>(load(run.grad.at(n))) * load(run.phi.at(n));
    columns[i] += pull, rows[o] -= pull;
  }
  SpectralGradients gradients = run.gradients();
  if (in_place) gradients.phi = run.grad.view().data;
  std::vector<char> workspace(spectral_weight_workspace<Device>(run.spectrum()) + 1, 0x7f);
  spectral_weight_backward<Device>(run.grad.view().data, run.spectrum(), gradients, workspace.data(), nullptr);
  check_all(in_place ? run.grad : run.phi_grad, before, expected, what);
  for (int64_t i = 0; run.has_in && i < in; ++i) check_sum(run.in_grad.at(i), columns[i], out * kernel, what + ", in");
  for (int64_t o = 0; run.has_out && o < out; ++o) check_sum(run.out_grad.at(o), rows[o], in * kernel, what + ", out");
}

template <class Body>
void for_each_spectrum(const Body& body) {
  const int64_t shapes[][3] = {{1, 1, 1},  {5, 7, 1},  {65, 128, 1}, {130, 513, 1}, {3, 1030, 1},
                               {70, 5, 9}, {4, 33, 4}, {0, 4, 1},    {4, 0, 1},     {4, 3, 0}};
  for (const auto& shape : shapes) {
    for (int kind = 0; kind < 3; ++kind) {
      for (const int64_t shift : {0, 1}) body(shape[0], shape[1], shape[2], kind, shift);
    }
  }
}

#define SPECTRAL_TESTS(Device)                                                                         \
  TEST(spectral_weight_equals_a_loop) {                                                                \
    test::for_each_spectrum([](int64_t out, int64_t in, int64_t kernel, int kind, int64_t shift) {     \
      test::for_each_dtype([&](auto x) {                                                               \
        if (out * in * kernel > 0) test::weight_in<Device, decltype(x)>(out, in, kernel, kind, shift); \
      });                                                                                              \
    });                                                                                                \
  }                                                                                                    \
  TEST(spectral_weight_backward_equals_a_loop) {                                                       \
    test::for_each_spectrum([](int64_t out, int64_t in, int64_t kernel, int kind, int64_t shift) {     \
      test::for_each_dtype([&](auto x) {                                                               \
        for (const bool in_place : {false, true})                                                      \
          test::weight_backward_in<Device, decltype(x)>(out, in, kernel, kind, shift, in_place);       \
      });                                                                                              \
    });                                                                                                \
  }

}  // namespace sparsenn::test
