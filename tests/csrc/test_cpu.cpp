// The launchers of csrc/cpu.
#include "adam_cases.h"
#include "balanced_cases.h"
#include "launcher_cases.h"
#include "prox_cases.h"
#include "ridge_cases.h"
#include "spectral_cases.h"
#include "stacked_cases.h"

using namespace sparsenn;

namespace {

LAUNCHER_TESTS(Cpu)
BALANCED_LAUNCHER_TESTS(Cpu)
PROX_LAUNCHER_TESTS(Cpu)
SPECTRAL_TESTS(Cpu)
RIDGE_TESTS(Cpu)
STACKED_TESTS(Cpu)
ADAM_LAUNCHER_TESTS(Cpu)

// Large tensors are written past the cache, in spans: the same bits as in pieces too small for that.
template <class T>
void streamed_equals_small() {
  constexpr int64_t kSize = (int64_t{33} << 20) / (3 * sizeof(T)) + 1001, kPiece = 50000;
  for (const int64_t shift : {0, 1}) {
    const test::Form form{"streamed", {kSize}, {{1}}, shift};
    auto factors = test::filled<T>(form, 2, 1), grads = test::filled<T>(form, 2, 2), small_grads = grads;
    auto out = test::filled<T>(form, 1, 3)[0], small_out = out;
    hadamard<Cpu>(test::views_of(factors).data(), 2, out.view(), nullptr);
    hadamard_backward<Cpu>(out.view(), test::views_of(factors).data(), 2, test::views_of(grads).data(), nullptr);
    const int64_t stride = 1;
    for (int64_t begin = 0; begin < kSize; begin += kPiece) {
      const int64_t size = std::min(kPiece, kSize - begin);
      const auto piece = [&](test::Tensor<T>& tensor) {
        return TensorView{static_cast<T*>(tensor.view().data) + begin, test::kDType<T>, size, 1, &size, &stride};
      };
      const TensorView in[2] = {piece(factors[0]), piece(factors[1])},
                       to[2] = {piece(small_grads[0]), piece(small_grads[1])};
      hadamard<Cpu>(in, 2, piece(small_out), nullptr);
      hadamard_backward<Cpu>(piece(small_out), in, 2, to, nullptr);
    }
    CHECK(test::same_bits(out.memory(), small_out.memory()), "the product differs");
    for (int d = 0; d < 2; ++d)
      CHECK(test::same_bits(grads[d].memory(), small_grads[d].memory()), "gradient ", d, " differs");
  }
}

TEST(streamed_equals_small_float32) { streamed_equals_small<float>(); }
TEST(streamed_equals_small_bfloat16) { streamed_equals_small<bfloat16>(); }

// Parts of a grain each, the last first.
void backwards(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  for (int64_t begin = (size - 1) / grain * grain; begin >= 0; begin -= grain)
    body(begin, std::min(size, begin + grain), context);
}

// A part for each block.
void singly(int64_t size, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  for (int64_t begin = 0; begin < size; ++begin) body(begin, begin + 1, context);
}

void whole(int64_t size, int64_t, void (*body)(int64_t, int64_t, void*), void* context) { body(0, size, context); }

TEST(threads_do_not_change_bits) {
  const test::Form forms[] = {
      {"flat", {50000}, {{1}}}, {"transposed", {40, 1001}, {{1001, 1}, {1, 40}}}, {"tiny", {3}, {{1}}}};
  test::StepCase<float> before;
  for (const int64_t n : {0, 1, 2, 0, 2}) before.add(forms[n], 3, true, 7 + n);
  before.measured.on = true;
  test::StepCase<float> serial = before;
  serial.step<Cpu>(test::step_options(1));
  for (const ParallelFor split : {backwards, singly, whole}) {
    set_parallel_for(split);
    test::StepCase<float> run = before;
    run.step<Cpu>(test::step_options(1));
    run.check_step_from(before, test::step_options(1), "split");
    CHECK(test::same_bits(run.measured.rows, serial.measured.rows), "measures depend on the split");
    for (size_t k = 0; k < run.factors.size(); ++k) {
      CHECK(test::same_bits(run.factors[k].memory(), serial.factors[k].memory()), "factor ", k,
            " depends on the split");
    }
  }
  set_parallel_for(whole);
}

// The counts too: they are integers, whoever adds them up first.
TEST(threads_do_not_change_proximal_steps) {
  const test::Form forms[] = {
      {"flat", {50000}, {{1}}}, {"transposed", {40, 1001}, {{1001, 1}, {1, 40}}}, {"tiny", {3}, {{1}}}};
  const test::Lam kinds[] = {test::Lam::number, test::Lam::rows, test::Lam::zero, test::Lam::elements};
  test::ProxCase<float> before;
  for (const int64_t n : {0, 1, 2, 3, 5}) before.add(forms[n % 3], kinds[n % 4], true, 7 + n);
  for (const ParallelFor split : {backwards, singly, whole}) {
    set_parallel_for(split);
    test::ProxCase<float> run = before;
    run.step<Cpu>(test::prox_options(1));
    run.check_step_from(before, test::prox_options(1), "split");
  }
  set_parallel_for(whole);
}

TEST(a_step_that_counts_nothing_writes_no_counts) {
  test::ProxCase<double> run;
  run.add({"flat", {100}, {{1}}}, test::Lam::number, true, 3);
  run.step<Cpu>(test::prox_options(0), nullptr, false);
  CHECK(run.zeros[0] == -7 && run.zeros[1] == -7);
}

// The fused product and its gradients, on both sides of every edge of its blocks.
template <class T>
void linear_in(int64_t batch, int64_t out, int64_t in, int kind) {
  test::SpectralCase<T> run(out, in, 1, kind);
  const std::string what = run.label("spectral_linear") + ", batch " + std::to_string(batch);
  auto x = run.shifted({batch, in}, 0, 11), bias = run.shifted({out}, 0, 12), z = run.shifted({batch, out}, 0, 13);
  auto upstream = run.shifted({batch, out}, 0, 14), x_grad = run.shifted({batch, in}, 0, 15), bias_grad = bias;
  spectral_linear(x.view().data, run.spectrum(), bias.view().data, batch, z.view().data);
  SpectralGradients to = run.gradients();
  to.input = x_grad.view().data, to.bias = bias_grad.view().data;
  spectral_linear_backward(upstream.view().data, x.view().data, run.spectrum(), batch, to);
  // A frozen layer's: by blocks, where the sweeps of all gradients may have wider strips.
  auto alone = run.shifted({batch, in}, 0, 16);
  SpectralGradients of_input{};
  of_input.input = alone.view().data;
  spectral_linear_backward(upstream.view().data, x.view().data, run.spectrum(), batch, of_input);
  CHECK(test::same_bits(alone.values(), x_grad.values()), what,
        ", the input's gradient depends on what else is wanted");

  using Long = long double;
  std::vector<Long> weight(out * in), gradient(out * in), columns(in), rows(out);
  for (int64_t n = 0; n < out * in; ++n) {
    const int64_t o = n / in, i = n % in;
    const Long scale =
        (run.has_in ? Long(load(run.lambda_in.at(i))) : 0) - (run.has_out ? load(run.lambda_out.at(o)) : 0);
    weight[n] = scale * load(run.phi.at(n));
    for (int64_t b = 0; b < batch; ++b) gradient[n] += Long(load(upstream.at(b * out + o))) * load(x.at(b * in + i));
    columns[i] += gradient[n] * load(run.phi.at(n)), rows[o] -= gradient[n] * load(run.phi.at(n));
    test::check_sum(run.phi_grad.at(n), scale * gradient[n], 2 * batch, what + ", phi");
  }
  for (int64_t i = 0; run.has_in && i < in; ++i)
    test::check_sum(run.in_grad.at(i), columns[i], 2 * out * batch, what + ", in");
  for (int64_t o = 0; o < out; ++o) {
    if (run.has_out) test::check_sum(run.out_grad.at(o), rows[o], 2 * in * batch, what + ", out");
    Long sum = 0;
    for (int64_t b = 0; b < batch; ++b) sum += load(upstream.at(b * out + o));
    test::check_sum(bias_grad.at(o), sum, batch, what + ", bias");
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t o = 0; o < out; ++o) {
      Long sum = load(bias.at(o));
      for (int64_t i = 0; i < in; ++i) sum += weight[o * in + i] * load(x.at(b * in + i));
      test::check_sum(z.at(b * out + o), sum, 2 * in, what + ", output");
    }
    for (int64_t i = 0; i < in; ++i) {
      Long sum = 0;
      for (int64_t o = 0; o < out; ++o) sum += weight[o * in + i] * load(upstream.at(b * out + o));
      test::check_sum(x_grad.at(b * in + i), sum, 2 * out, what + ", input");
    }
  }
}

TEST(spectral_linear_equals_a_loop) {
  const int64_t shapes[][3] = {{1, 1, 1},     {1, 25, 300}, {4, 7, 16}, {12, 49, 33}, {13, 50, 40}, {40, 30, 270},
                               {260, 13, 20}, {8, 7, 4100}, {0, 3, 4},  {3, 0, 4},    {3, 4, 0}};
  for (const auto& shape : shapes) {
    for (int kind = 0; kind < 3; ++kind) {
      test::for_each_dtype([&](auto x) { linear_in<decltype(x)>(shape[0], shape[1], shape[2], kind); });
    }
  }
}

TEST(threads_do_not_change_the_bits_of_spectral_products) {
  for (const int64_t batch : {2, 40}) {
    std::vector<std::vector<float>> all;
    for (const ParallelFor split : {whole, backwards, singly}) {
      set_parallel_for(split);
      test::SpectralCase<float> run(130, 700, 1, 2);
      auto x = run.shifted({batch, 700}, 0, 1), z = run.shifted({batch, 130}, 0, 2),
           x_grad = run.shifted({batch, 700}, 0, 3);
      spectral_linear(x.view().data, run.spectrum(), nullptr, batch, z.view().data);
      SpectralGradients to = run.gradients();
      to.input = x_grad.view().data;
      spectral_linear_backward(z.view().data, x.view().data, run.spectrum(), batch, to);
      std::vector<float> found;
      for (auto* tensor : {&z, &x_grad, &run.phi_grad, &run.in_grad, &run.out_grad}) {
        const auto values = tensor->values();
        found.insert(found.end(), values.begin(), values.end());
      }
      all.push_back(found);
    }
    set_parallel_for(whole);
    CHECK(test::same_bits(all[0], all[1]) && test::same_bits(all[0], all[2]), "batch ", batch, " depends on the split");
  }
}

}  // namespace

MAIN()
