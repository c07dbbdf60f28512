// The launchers of csrc/cpu.
#include "launcher_cases.h"
#include "prox_cases.h"

using namespace sparsenn;

namespace {

LAUNCHER_TESTS(Cpu)
PROX_LAUNCHER_TESTS(Cpu)

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
  test::StepCase<float> serial = before;
  serial.step<Cpu>(test::step_options(1));
  for (const ParallelFor split : {backwards, singly, whole}) {
    set_parallel_for(split);
    test::StepCase<float> run = before;
    run.step<Cpu>(test::step_options(1));
    run.check_step_from(before, test::step_options(1), "split");
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

}  // namespace

MAIN()
