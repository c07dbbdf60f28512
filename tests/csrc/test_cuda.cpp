// The CUDA launchers, compiled for the host: all but the hardware. tests/csrc/emulation stands for
// csrc/cuda/launch.cuh.
#include "adam_cases.h"
#include "balanced_cases.h"
#include "cuda/launch.cuh"
#include "launcher_cases.h"
#include "prox_cases.h"
#include "ridge_cases.h"
#include "spectral_cases.h"
#include "stacked_cases.h"

using namespace sparsenn;
using cuda::emulation;

namespace {

LAUNCHER_TESTS(Cuda)
BALANCED_LAUNCHER_TESTS(Cuda)
PROX_LAUNCHER_TESTS(Cuda)
SPECTRAL_TESTS(Cuda)
RIDGE_TESTS(Cuda)
STACKED_TESTS(Cuda)
ADAM_LAUNCHER_TESTS(Cuda)

// Weights and states have the CPU's bits, whatever there is room for in the memory that threads share.
template <class T>
void stacked_bits_are_the_cpus() {
  const auto check_bits = [](const std::vector<PatchLayer>& layers, int64_t samples, int64_t batch, bool labels) {
    const int64_t steps = (samples + batch - 1) / batch;
    test::StackedCase<T> expected(layers, test::stacked_runs(), samples, batch, labels);
    const test::StackedCase<T> start = expected;
    expected.template train<Cpu>(1, 0, steps);
    for (const int64_t bytes : {0, 12 << 10, 200 << 10}) {
      test::StackedCase<T> got = start;
      emulation.shared_bytes = bytes;
      got.template train<Cuda>(1, 0, steps);
      emulation.shared_bytes = 64 << 10;
      CHECK(expected.weights == got.weights, "weights differ with ", bytes, " bytes, batch ", batch);
      CHECK(expected.state == got.state, "states differ with ", bytes, " bytes, batch ", batch);
      for (size_t n = 0; n < got.losses.size(); ++n) {
        CHECK(std::fabs(got.losses[n] - expected.losses[n]) <= 1e-5 * std::fabs(expected.losses[n]), "loss ", n, " is ",
              got.losses[n], ", not ", expected.losses[n]);
      }
    }
  };
  // An even batch is not the stride of its features; one of 300 has more samples than a block has threads. Of patches
  // that are the whole input, some have several channels and filters of which one is used.
  const std::vector<PatchLayer> whole = {{2, 6, 3, 3, 2, true}, {3, 2, 4, 2, 2, true}, {4, 1, 2, 1, 1, false}};
  for (const auto* layers : {&test::kPatches, &test::kDense, &whole}) {
    for (const int64_t batch : {1, 8, 9, 29}) check_bits(*layers, 29, batch, batch % 2);
    check_bits(*layers, 301, 300, false);
  }
}

TEST(stacked_bits_are_the_cpus_float32) { stacked_bits_are_the_cpus<float>(); }
TEST(stacked_bits_are_the_cpus_float64) { stacked_bits_are_the_cpus<double>(); }

TEST(rows_divide_exactly) {
  std::mt19937_64 random(1);
  const auto check_size = [&](int64_t size) {
    uint64_t words[2];
    cuda::Row::set(words, size, nullptr, 0);
    const cuda::Row row(words);
    const auto check_index = [&](int64_t index) {
      int64_t rest = index;
      const int64_t coordinate = row.take_coordinate(rest);
      CHECK(coordinate == index % size && rest == index / size, index, " by ", size, " is ", rest, " and ", coordinate);
    };
    for (const int64_t multiple : {int64_t{1}, int64_t{2}, int64_t{1000003}, INT64_MAX / size}) {
      if (multiple > INT64_MAX / size) continue;
      for (const int64_t near : {-1, 0, 1}) {
        const int64_t edge = multiple * size;
        if (near < 1 || edge < INT64_MAX) check_index(edge + near);
      }
    }
    check_index(0), check_index(INT64_MAX), check_index(INT64_MAX - 1);
    for (int n = 0; n < 50; ++n) check_index(static_cast<int64_t>(random() >> (1 + random() % 62)));
  };
  for (int64_t size = 2; size < 3000; ++size) check_size(size);
  for (int bit = 2; bit < 55; ++bit) {
    for (const int64_t near : {-1, 0, 1}) check_size((int64_t{1} << bit) + near);
  }
  for (int n = 0; n < 20000; ++n)
    check_size(std::max<int64_t>(2, static_cast<int64_t>(random() >> (8 + random() % 54))));
}

// Each operand's strides in a shape; the first is the model.
cuda::Layout layout_of(const test::Shape& sizes, const std::vector<test::Shape>& strides) {
  std::vector<TensorView> views;
  std::vector<const TensorView*> pointers;
  for (const test::Shape& own : strides) {
    views.push_back(
        {nullptr, DType::float32, test::numel_of(sizes), static_cast<int64_t>(sizes.size()), sizes.data(), own.data()});
  }
  for (const TensorView& view : views) pointers.push_back(&view);
  return cuda::Layout(pointers.data(), static_cast<int64_t>(pointers.size()), views[0]);
}

TEST(layouts_have_as_few_dimensions_as_they_need) {
  const test::Shape image{8, 16, 5, 5}, nchw = test::row_major(image), nhwc = test::strides_of(image, {0, 2, 3, 1});
  CHECK(layout_of(image, {nchw, nchw}).flat(), "contiguous operands");
  CHECK(layout_of(image, {nhwc, nhwc}).flat(), "operands in channels_last");
  CHECK(layout_of(image, {nchw, nhwc}).dim() == 3, "batch, channels, and the image as one");
  CHECK(layout_of({1, 7, 1}, {{99, 1, 3}, {7, 1, 1}}).flat(), "strides of dimensions of size 1 mean nothing");
  CHECK(layout_of({1, 1}, {{5, 4}, {3, 2}}).flat(), "a single element");
  CHECK(layout_of({}, {{}, {}}).flat(), "a 0-d tensor");
  CHECK(layout_of({4, 6}, {{12, 1}, {12, 1}}).dim() == 2, "rows with gaps");
  CHECK(layout_of({4, 6}, {{12, 2}, {12, 2}}).dim() == 1, "every second element is one dimension, but not flat");
  CHECK(!layout_of({4, 6}, {{12, 2}, {12, 2}}).flat(), "every second element is not flat");
  CHECK(layout_of({4, 6}, {{6, 1}, {0, 0}}).dim() == 1, "an expanded scalar is one dimension");
  CHECK(layout_of({4, 6}, {{6, 1}, {0, 1}}).dim() == 2, "an expanded row");
  CHECK(layout_of({2, 2}, {{1, 1}, {1, 1}}).dim() == 2, "equal strides that overlap are not dense");
  CHECK(layout_of({3, 2, 2}, {{1, 0, 9}, {1, 0, 9}}).dim() == 3, "a span that fits by chance is not dense");
  const cuda::Layout rows = layout_of({4, 6}, {{1, 4}, {6, 1}});
  CHECK(rows.dim() == 2 && rows.size(0) == 4 && rows.strides(0)[0] == 1 && rows.strides(0)[1] == 6,
        "innermost: rows of the model");
}

TEST(chunks_are_found) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    cuda::Table<600> table(3);
    std::vector<int> owners;
    std::vector<int64_t> sizes;
    const int count = 1 + random() % 120;
    for (int n = 0; n < count; ++n) {
      CHECK(!table.full(), "five words each");
      sizes.push_back(1 + random() % (random() % 7 ? 40 : 4000));
      table.add(sizes.back(), n % 3 == 0, 16);
      owners.insert(owners.end(), (sizes.back() + 15) / 16, n);
    }
    CHECK(table.full() == (count == 120), "the room of 600 words");
    CHECK(table.chunks == static_cast<int64_t>(owners.size()), "chunks in all");
    for (int64_t chunk = 0; chunk < table.chunks; ++chunk) {
      const int n = table.find<5>(chunk);
      CHECK(n == owners[chunk] && n == table.find<0>(chunk), "chunk ", chunk, " is of tensor ", owners[chunk], ", not ",
            n);
      const cuda::Entry entry = table.entry<0>(n);
      CHECK(entry.size() == sizes[n] && entry.aligned() == (n % 3 == 0), "entry ", n);
      CHECK(owners[entry.first_chunk()] == n && (n == 0 || owners[entry.first_chunk() - 1] == n - 1), "first chunk of ",
            n);
    }
  }
}

// Sizes beyond what an int holds: the arithmetic alone, no memory.
TEST(large_sizes_keep_64_bits) {
  cuda::Table<cuda::kSmallTable> table(3);
  const int64_t huge = (int64_t{1} << 40) + 5;
  table.add(huge, true, 1024), table.add(7, true, 1024), table.add(huge, false, 1024);
  const int64_t chunks = (huge + 1023) / 1024;
  CHECK(table.chunks == 2 * chunks + 1);
  CHECK(table.find<5>(chunks - 1) == 0 && table.find<5>(chunks) == 1 && table.find<5>(chunks + 1) == 2);
  CHECK(table.entry<5>(2).size() == huge && !table.entry<5>(2).aligned() &&
        table.entry<5>(2).first_chunk() == chunks + 1);
  const cuda::Layout layout = layout_of({int64_t{1} << 20, int64_t{1} << 20}, {{1 << 20, 1}, {1, 1 << 20}});
  cuda::Table<cuda::kSmallTable> strided(2, 2);
  uint64_t* words = strided.add(int64_t{1} << 40, true, 256) + 2;
  for (int i = 0; i < 2; ++i, words += cuda::Row::words(2)) cuda::Row::set(words, layout.size(i), layout.strides(i), 2);
  strided.words[2] = strided.words[3] = 0;
  const int64_t row = 987654, column = 123456;
  const cuda::StridedElement<2> element(strided, strided.entry<0>(0), row << 20 | column);
  const cuda::StridedElement<0> any(strided, strided.entry<0>(0), row << 20 | column);
  const int64_t expected[2] = {row << 20 | column, column << 20 | row};
  for (int k = 0; k < 2; ++k) {
    CHECK(reinterpret_cast<int64_t>(element.pointer<char>(k)) == expected[k], "operand ", k);
    CHECK(reinterpret_cast<int64_t>(any.pointer<char>(k)) == expected[k], "operand ", k, " of any number");
  }
}

// Weights of a whole model in one call: empty, tiny, misaligned, larger than a chunk, and some that are not flat.
template <class W>
test::StepCase<W> many(int64_t count, int64_t depth, bool with_momenta) {
  test::StepCase<W> all;
  std::mt19937 random(4);
  for (int64_t n = 0; n < count; ++n) {
    test::Form form{"many", {static_cast<int64_t>(random() % 40)}, {{1}}, n % 5 == 3};
    if (n % 31 == 0) form.sizes = {static_cast<int64_t>(1000 + random() % 3000)};
    if (n % 50 == 7) form.sizes = {6, 7}, form.strides = {{7, 1}, {1, 6}};
    all.add(form, depth, with_momenta, 10 + n);
  }
  return all;
}

TEST(many_tensors_in_few_launches) {
  for (const bool large : {true, false}) {
    emulation.large_parameters = large;
    for (const int64_t depth : {1, 2, 3, 5, 9}) {
      const auto before = many<float>(450, depth, true);
      auto run = before;
      emulation.launches = 0;
      run.step<Cuda>(test::step_options(1));
      run.check_step_from(before, test::step_options(1), "450 weights");
      const int64_t words = 2 + 2 + 2 * depth, room = large && depth <= 4 ? cuda::kLargeTable : cuda::kSmallTable;
      const int64_t strided = 9, at_most = strided + (450 * words + room - words - 1) / (room - words + 1) + 1;
      CHECK(emulation.launches <= at_most, emulation.launches, " launches at depth ", depth, ", at most ", at_most,
            " are needed");
      if (large && depth == 2) CHECK(emulation.launches <= strided + 2, emulation.launches, " launches");
    }
  }
  emulation.large_parameters = true;
}

TEST(nothing_is_launched_for_empty_tensors) {
  emulation.launches = 0;
  test::StepCase<double> run;
  for (int n = 0; n < 3; ++n) run.add({"empty", {0, 4}, {{4, 1}}}, 2, true, n);
  run.step<Cuda>(test::step_options(0));
  factorized_sgd<Cuda>(nullptr, nullptr, nullptr, nullptr, 0, 2, test::step_options(0), {nullptr, 0, nullptr}, nullptr);
  CHECK(emulation.launches == 0, emulation.launches, " launches");
}

TEST(grids_of_any_size_give_the_same_bits) {
  std::vector<double> measured;
  for (const int64_t blocks : {1, 2, 3, 64, 1 << 20}) {
    emulation.blocks = blocks;
    auto before = many<bfloat16>(60, 3, true);
    for (const bool measures : {false, true}) {
      before.measured.on = measures;
      auto run = before;
      run.step<Cuda>(test::step_options(2));
      run.check_step_from(before, test::step_options(2), "grid");
      if (blocks == 1) measured = run.measured.rows;
      CHECK(!measures || test::same_bits(run.measured.rows, measured), "measures depend on the grid");
    }
    test::product_in<Cuda, float>({"grid", {5, 2055}, {{2055, 1}, {1, 5}}}, 3);
  }
  emulation.blocks = 7;
}

// lr and lam in device memory (here the host's) count, and the host's values beside them do not.
template <class W>
void scalars_on_the_device() {
  const float lr32 = 0.3f, lam32 = 2e-3f;
  const double lr64 = 0.3, lam64 = 2e-3;
  for (int form = 1; form < 9; ++form) {
    for (const int64_t depth : {1, 3, 9}) {
      FactorizedSgdOptions options = test::step_options(1), host = options;
      if (form % 3 == 1) options.lr = {-1, &lr32, false}, host.lr.value = lr32;
      if (form % 3 == 2) options.lr = {-1, &lr64, true}, host.lr.value = lr64;
      if (form / 3 == 1) options.lam = {0, &lam32, false}, host.lam.value = lam32;
      if (form / 3 == 2) options.lam = {0, &lam64, true}, host.lam.value = lam64;
      auto before = many<W>(9, depth, true), run = before;
      run.template step<Cuda>(options);
      run.check_step_from(before, host, "scalars on the device, form " + std::to_string(form));
    }
  }
}

TEST(scalars_on_the_device_are_read) {
  scalars_on_the_device<float>(), scalars_on_the_device<double>(), scalars_on_the_device<float16>();
}

TEST(a_zero_lam_on_the_device_switches_decay_off) {
  const float zero = 0;
  FactorizedSgdOptions options = test::step_options(0), host = options;
  options.lam.device = &zero, host.lam.value = 0;
  auto before = many<float>(9, 2, true), run = before;
  run.step<Cuda>(options);
  run.check_step_from(before, host, "lam = 0 on the device");
}

template <class Body>
std::string refusal(const Body& body) {
  try {
    body();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(what_does_not_fit_is_refused) {
  const std::string deep = refusal([] { test::product_in<Cuda, float>({"deep", {3}, {{1}}}, 600); });
  CHECK(deep.find("hadamard: the CUDA kernel can't take 601 tensors") != std::string::npos, deep);
  test::product_in<Cuda, float>({"deep", {300}, {{1}}}, 400);
  test::step_in<Cuda, float>({"deep", {300}, {{1}}}, 200, 0);
  const test::Shape sizes(13, 2);
  const test::Form form{"deep and strided",
                        sizes,
                        {test::row_major(sizes), test::strides_of(sizes, {0, 2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11})}};
  const std::string dimensions = refusal([&] { test::gradients_in<Cuda, float>(form, 20); });
  CHECK(dimensions.find("strides differ in 13 dimensions") != std::string::npos, dimensions);
}

template <class From, class T>
void scaled(int64_t rows, int64_t columns, bool scale, bool shift) {
  using A = accumulator_t<T>;
  const test::Shape sizes{rows, columns}, along{columns};
  test::Tensor<From> input(sizes);
  test::Tensor<T> output(sizes), by(along), plus(along);
  input.fill(1), output.fill(2), by.fill(3), plus.fill(4);
  const auto before = output;
  std::vector<T> expected;
  for (int64_t n = 0; n < rows * columns; ++n) {
    A value = load(input.at(n));
    if (scale) value *= -load(by.at(n % columns));
    if (shift) value += load(plus.at(n % columns));
    expected.push_back(store<T>(value));
  }
  scale_columns(test::kDType<From>, input.view().data, scale ? by.view().data : nullptr, -1,
                shift ? plus.view().data : nullptr, rows, columns, test::kDType<T>, output.view().data, nullptr);
  test::check_all(output, before, expected, "scale_columns");
}

TEST(scale_columns_equals_a_loop) {
  test::for_each_dtype([](auto x) {
    for (const auto& [rows, columns] : {std::pair{1, 1}, {5, 300}, {400, 3}, {64, 64}}) {
      for (int kind = 1; kind < 4; ++kind) {
        using T = decltype(x);
        scaled<T, T>(rows, columns, kind & 1, kind & 2);
        scaled<accumulator_t<T>, T>(rows, columns, kind & 1, kind & 2);
      }
    }
  });
}

// The CPU's bits, in all dtypes.
TEST(cpu_and_cuda_agree) {
  test::for_each_dtype([](auto x) {
    for (const int64_t depth : test::depths()) {
      auto cpu = many<decltype(x)>(40, depth, true), cuda = cpu;
      for (int step = 0; step < 3; ++step)
        cpu.template step<Cpu>(test::step_options(1)), cuda.template step<Cuda>(test::step_options(1));
      for (size_t k = 0; k < cpu.weights.size(); ++k) {
        CHECK(test::same_bits(cpu.weights[k].memory(), cuda.weights[k].memory()), "weight ", k, " at depth ", depth);
      }
      for (size_t k = 0; k < cpu.factors.size(); ++k) {
        CHECK(test::same_bits(cpu.factors[k].memory(), cuda.factors[k].memory()), "factor ", k, " at depth ", depth);
        CHECK(test::same_bits(cpu.momenta[k].memory(), cuda.momenta[k].memory()), "momentum ", k, " at depth ", depth);
      }
    }
  });
}

// Weights of a whole model in one proximal step, with lams of all kinds: many share a block, and some take many blocks.
template <class W>
test::ProxCase<W> many_prox(int64_t count, bool with_momenta) {
  test::ProxCase<W> all;
  std::mt19937 random(4);
  const test::Lam kinds[] = {test::Lam::number, test::Lam::elements, test::Lam::zero, test::Lam::rows, test::Lam::one};
  for (int64_t n = 0; n < count; ++n) {
    test::Form form{"many", {static_cast<int64_t>(random() % 40)}, {{1}}, n % 5 == 3};
    if (n % 31 == 0) form.sizes = {static_cast<int64_t>(1000 + random() % 9000)};
    if (n % 50 == 7) form.sizes = {6, 7}, form.strides = {{7, 1}, {1, 6}};
    all.add(form, kinds[n % 5], with_momenta, 10 + n);
  }
  return all;
}

TEST(many_proximal_steps_in_few_launches) {
  for (const bool large : {true, false}) {
    emulation.large_parameters = large;
    for (const bool with_momenta : {true, false}) {
      const auto before = many_prox<float>(450, with_momenta);
      const auto options = with_momenta ? test::prox_options(1) : test::without_momentum(test::prox_options(2));
      auto run = before;
      emulation.launches = 0;
      run.step<Cuda>(options);
      run.check_step_from(before, options, "450 weights");
      // Rows and single numbers are strided; the others share launches.
      CHECK(emulation.launches <= 190 + (large ? 2 : 8), emulation.launches, " launches");
    }
  }
  emulation.large_parameters = true;
}

TEST(grids_of_any_size_count_the_same_zeros) {
  for (const int64_t blocks : {1, 2, 3, 64, 1 << 20}) {
    emulation.blocks = blocks;
    const auto before = many_prox<bfloat16>(70, true);
    auto run = before;
    run.step<Cuda>(test::prox_options(2));
    run.check_step_from(before, test::prox_options(2), "grid");
  }
  emulation.blocks = 7;
}

// lr and lam in device memory (here the host's) count, and the host's values beside them do not. A lam of 0 there
// leaves SGD, negative zeros included.
TEST(proximal_scalars_on_the_device_are_read) {
  const float lr32 = 0.3f;
  const double lr64 = 0.3;
  for (const bool is_double : {false, true}) {
    auto before = many_prox<float>(40, true), run = before;
    ProxSgdOptions options = test::prox_options(1), host = options;
    options.lr = {-1, is_double ? static_cast<const void*>(&lr64) : &lr32, is_double};
    host.lr.value = is_double ? lr64 : lr32;
    const std::vector<double> lams = run.numbers;
    for (double& number : run.numbers) number = -1;
    run.step<Cuda>(options, lams.data());
    run.numbers = lams;
    run.check_step_from(before, host, "scalars on the device");
  }
  const float lam = 0.25f;
  test::Tensor<float> input({5}), out({5});
  input.fill(1);
  soft_threshold<Cuda>(input.view(), {{-1, &lam, false}, {}}, out.view(), nullptr);
  for (int64_t i = 0; i < 5; ++i) CHECK(out.at(i) == test::shrunk(input.at(i), lam), "element ", i);
}

TEST(no_proximal_step_is_launched_for_empty_tensors) {
  emulation.launches = 0;
  test::ProxCase<double> run;
  for (int n = 0; n < 3; ++n) run.add({"empty", {0, 4}, {{4, 1}}}, test::Lam::number, true, n);
  run.step<Cuda>(test::prox_options(0));
  prox_sgd<Cuda>(nullptr, nullptr, nullptr, nullptr, {nullptr, 0}, 0, test::prox_options(0), nullptr);
  CHECK(emulation.launches == 0, emulation.launches, " launches");
  for (int n = 0; n < 3; ++n) CHECK(run.zeros[2 * n] == 0, "an empty weight has no zeros");
}

TEST(every_weight_of_many_is_measured) {
  for (const int64_t depth : {2, 9}) {
    auto sgd = many<float>(120, depth, false);
    auto adam = test::many_adam<float>(120, depth, true);
    sgd.measured.on = adam.measured.on = true;
    const auto sgd_before = sgd;
    const auto adam_before = adam;
    sgd.step<Cuda>(test::step_options(0)), adam.step<Cuda>(test::adam_options(1));
    sgd.check_step_from(sgd_before, test::step_options(0), "120 weights, SGD");
    adam.check_step_from(adam_before, test::adam_options(1), "120 weights, Adam");
  }
}

// One launch counts the steps of all weights, and those that are flat share another.
TEST(many_adam_steps_in_few_launches) {
  for (const int64_t depth : {1, 2, 4, 5, 9}) {
    const auto before = test::many_adam<float>(450, depth, true);
    auto run = before;
    emulation.launches = 0;
    run.step<Cuda>(test::adam_options(1));
    run.check_step_from(before, test::adam_options(1), "450 weights");
    const int64_t words = 2 + 1 + 2 + 4 * depth, room = depth <= 4 ? cuda::kLargeTable : cuda::kSmallTable;
    const int64_t counting = 1, strided = 9, flat = (450 * words + room - words - 1) / (room - words + 1) + 1;
    CHECK(emulation.launches <= counting + strided + flat, emulation.launches, " launches at depth ", depth);
  }
  emulation.launches = 0;
  factorized_adam<Cuda>({nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 2}, test::adam_options(0),
                        {nullptr, 0, nullptr}, nullptr, nullptr);
  CHECK(emulation.launches == 0, emulation.launches, " launches for no weights");
}

TEST(adam_refuses_before_it_counts_a_step) {
  const test::Shape sizes(13, 2);
  const test::Form form{"deep and strided",
                        sizes,
                        {test::row_major(sizes), test::strides_of(sizes, {0, 2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11})}};
  test::AdamCase<float> run;
  run.add({"flat", {7}, {{1}}}, 9, true, 1), run.add(form, 9, true, 2);
  const std::string dimensions = refusal([&] { run.step<Cuda>(test::adam_options(0)); });
  CHECK(dimensions.find("factorized_adam_: the CUDA kernel can't take 38 tensors") != std::string::npos, dimensions);
  CHECK(run.steps[0] == 0 && run.steps[1] == 1, "steps were counted");
}

// lr and lam in device memory (here the host's) count, for decay and shrinkage too, and the host's values do not.
TEST(adams_scalars_on_the_device_are_read) {
  const float lr32 = 0.3f, lam32 = 2e-3f;
  const double lr64 = 0.3, lam64 = 2e-3;
  for (int form = 1; form < 9; ++form) {
    for (const int variant : {0, 1}) {
      FactorizedAdamOptions options = test::adam_options(variant), host = options;
      if (form % 3 == 1) options.lr = {-1, &lr32, false}, host.lr.value = lr32;
      if (form % 3 == 2) options.lr = {-1, &lr64, true}, host.lr.value = lr64;
      if (form / 3 == 1) options.lam = {0, &lam32, false}, host.lam.value = lam32;
      if (form / 3 == 2) options.lam = {0, &lam64, true}, host.lam.value = lam64;
      for (const int64_t depth : {1, 3, 9}) {
        const auto before = test::many_adam<double>(9, depth, false);
        auto run = before;
        run.step<Cuda>(options);
        run.check_step_from(before, host, "scalars on the device, form " + std::to_string(form));
      }
    }
  }
}

}  // namespace

MAIN()
