// The steps of small networks as torch calls them, for both devices.
#pragma once

#include "math/activation.h"
#include "math/stacked_steps.h"
#include "registration/checks.h"

namespace sparsenn::bindings {

// The columns of the tables; ops/stacked_steps.py fills them.
enum Code : int64_t { kSeed, kData, kActivation, kLast, kOptimizer, kPenalty, kFactors, kCodes };
enum Rate : int64_t { kLr, kLam, kMomentum, kBeta1, kBeta2, kEps, kClipping, kDecay, kRates };
constexpr int64_t kLayerNumbers = 6, kMaxFactors = 8;

inline const char* name_of(ScalarType dtype) {
  return dtype == ScalarType::Long     ? "int64"
         : dtype == ScalarType::Double ? "float64"
         : dtype == ScalarType::Float  ? "float32"
                                       : "another dtype";
}

inline std::string kind_of(ScalarType dtype, const std::vector<int64_t>& sizes) {
  return name_of(dtype) + (" " + shape_of(sizes.data(), static_cast<int64_t>(sizes.size())));
}

inline std::string described_any(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return (tensor.is_contiguous() ? "" : "a strided ") + kind_of(tensor.scalar_type(), {sizes.begin(), sizes.end()});
}

template <class T>
const T* table_of(const Tensor& tensor, ScalarType dtype, std::vector<int64_t> sizes, const char* name) {
  bool fits = tensor.is_cpu() && tensor.scalar_type() == dtype && tensor.is_contiguous() &&
              tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = tensor.sizes()[i] == sizes[i];
  STD_TORCH_CHECK(fits, "sparsenn::stacked_steps_: ", name, " is ", described_any(tensor), "; it takes a contiguous ",
                  kind_of(dtype, sizes), " on the CPU, which stacked_tables makes");
  return static_cast<const T*>(tensor.data_ptr());
}

inline std::vector<PatchLayer> patch_layers(const std::vector<int64_t>& numbers) {
  STD_TORCH_CHECK(!numbers.empty() && numbers.size() % kLayerNumbers == 0,
                  "sparsenn::stacked_steps_: layers takes six numbers for each layer");
  std::vector<PatchLayer> layers;
  for (size_t n = 0; n < numbers.size(); n += kLayerNumbers) {
    const int64_t* own = numbers.data() + n;
    for (int k = 0; k < kLayerNumbers - 1; ++k) {  // the last says whether there is a bias
      STD_TORCH_CHECK(own[k] >= 1, "sparsenn::stacked_steps_: a size in layers is ", own[k], "; it takes 1 or more");
    }
    STD_TORCH_CHECK(own[1] >= own[3], "sparsenn::stacked_steps_: a layer's kernel is longer than its input");
    layers.push_back({own[0], own[1], own[2], own[3], own[4], own[5] != 0});
    if (n == 0) continue;
    const PatchLayer& before = layers[layers.size() - 2];
    STD_TORCH_CHECK(before.out_channels * (before.length / before.kernel) == own[0] * own[1],
                    "sparsenn::stacked_steps_: a layer does not take as many numbers as the one before gives");
  }
  return layers;
}

inline void check_shape(const Tensor& tensor, std::vector<int64_t> sizes, ScalarType dtype, const char* name) {
  bool fits =
      tensor.scalar_type() == dtype && tensor.is_contiguous() && tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = sizes[i] < 0 || tensor.sizes()[i] == sizes[i];
  STD_TORCH_CHECK(fits, "sparsenn::stacked_steps_: ", name, " is ", described_any(tensor), "; it takes a contiguous ",
                  kind_of(dtype, sizes));
}

inline StackedRun run_of(int64_t index, const int64_t* codes, const double* rates, int64_t sets, int64_t rows) {
  const auto check = [](int64_t code, int64_t end, const char* name) {
    STD_TORCH_CHECK(code >= 0 && code < end, "sparsenn::stacked_steps_: ", name, " has the code ", code,
                    "; it takes 0 to ", end - 1);
  };
  check(codes[kData], sets, "a data set");
  check(codes[kActivation], kActivations, "an activation");
  check(codes[kLast], kActivations, "a last activation");
  check(codes[kOptimizer], kOptimizers, "an optimizer");
  check(codes[kPenalty], kWeightPenalties, "a penalty");
  const auto optimizer = static_cast<Optimizer>(codes[kOptimizer]);
  if (optimizer == Optimizer::factorized) check(codes[kFactors] - 1, kMaxFactors, "a depth, less 1,");
  const int64_t needed = optimizer == Optimizer::factorized ? 2 * codes[kFactors]
                         : optimizer == Optimizer::adam     ? 2
                                                            : 1;
  STD_TORCH_CHECK(needed <= rows, "sparsenn::stacked_steps_: state has ", rows, " rows for a run; an optimizer keeps ",
                  needed);
  return {index,
          codes[kSeed],
          codes[kData],
          codes[kFactors],
          static_cast<Activation>(codes[kActivation]),
          static_cast<Activation>(codes[kLast]),
          optimizer,
          static_cast<WeightPenalty>(codes[kPenalty]),
          rates[kLr],
          rates[kLam],
          rates[kMomentum],
          rates[kBeta1],
          rates[kBeta2],
          rates[kEps],
          rates[kClipping],
          rates[kDecay]};
}

// The labels' values are checked where they lie on the CPU; the public function checks them anywhere.
inline void check_labels(const Tensor& y, int64_t classes) {
  if (!y.is_cpu()) return;
  const auto* labels = static_cast<const int64_t*>(y.data_ptr());
  for (int64_t n = 0; n < y.numel(); ++n) {
    STD_TORCH_CHECK(labels[n] >= 0 && labels[n] < classes, "sparsenn::stacked_steps_: y has the label ", labels[n],
                    "; it takes 0 to ", classes - 1);
  }
}

template <class Device>
void stacked_steps_(Tensor weights, Tensor state, Tensor losses, Tensor x, Tensor y, Tensor codes, Tensor rates,
                    Tensor active, std::vector<int64_t> layer_numbers, int64_t batch, int64_t epoch, int64_t first,
                    int64_t steps) {
  const std::vector<PatchLayer> layers = patch_layers(layer_numbers);
  const ScalarType dtype = weights.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "sparsenn::stacked_steps_: weights take float32 or float64");
  int64_t parameters = 0;
  for (const PatchLayer& l : layers) parameters += l.filters * l.out_channels * (l.in_channels * l.kernel + l.bias);
  const int64_t inputs = layers[0].in_channels * layers[0].length;
  const int64_t outputs = layers.back().out_channels * (layers.back().length / layers.back().kernel);
  check_shape(weights, {-1, parameters}, dtype, "weights");
  const int64_t runs = weights.sizes()[0];
  check_shape(state, {runs, -1, parameters}, dtype, "state");
  check_shape(losses, {runs, 2}, ScalarType::Double, "losses");
  check_shape(x, {-1, -1, inputs}, dtype, "x");
  const int64_t sets = x.sizes()[0], samples = x.sizes()[1], rows = state.sizes()[1];
  const bool labels = y.scalar_type() == ScalarType::Long;
  if (labels) {
    check_shape(y, {sets, samples}, ScalarType::Long, "y");
    check_labels(y, outputs);
  } else {
    check_shape(y, {sets, samples, outputs}, dtype, "y");
  }
  const std::pair<const char*, const Tensor*> others[] = {{"state", &state}, {"losses", &losses}, {"x", &x}, {"y", &y}};
  for (const auto& [name, tensor] : others) check_device(*tensor, weights, {"stacked_steps_", name});
  STD_TORCH_CHECK(samples <= int64_t{1} << 31, "sparsenn::stacked_steps_: x takes at most 2^31 samples");
  STD_TORCH_CHECK(batch >= 1 && epoch >= 0, "sparsenn::stacked_steps_: batch_size takes 1 or more, epoch 0 or more");
  const int64_t batches = samples / batch + (samples % batch != 0);
  STD_TORCH_CHECK(first >= 0 && steps >= 0 && steps <= batches && first <= batches - steps,
                  "sparsenn::stacked_steps_: first is ", first, " and steps ", steps, "; the epoch has ", batches,
                  " steps");
  const auto* code = table_of<int64_t>(codes, ScalarType::Long, {runs, kCodes}, "codes");
  const auto* rate = table_of<double>(rates, ScalarType::Double, {runs, kRates}, "rates");
  STD_TORCH_CHECK(active.dim() == 1, "sparsenn::stacked_steps_: active takes one dimension");
  const int64_t count = active.sizes()[0];
  const auto* moving = table_of<int64_t>(active, ScalarType::Long, {count}, "active");
  std::vector<StackedRun> own;
  std::vector<bool> seen(runs, false);
  for (int64_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK(moving[n] >= 0 && moving[n] < runs && !seen[moving[n]],
                    "sparsenn::stacked_steps_: active takes runs from 0 to ", runs - 1, ", none twice");
    seen[moving[n]] = true;
    own.push_back(run_of(moving[n], code + moving[n] * kCodes, rate + moving[n] * kRates, sets, rows));
  }
  if (count == 0 || steps == 0) return;
  const Stack stack{view_of(weights).dtype,
                    weights.data_ptr(),
                    state.data_ptr(),
                    parameters,
                    rows,
                    static_cast<double*>(losses.data_ptr()),
                    x.data_ptr(),
                    y.data_ptr(),
                    labels,
                    sets,
                    samples,
                    layers.data(),
                    static_cast<int64_t>(layers.size()),
                    std::min(batch, samples),
                    epoch,
                    first,
                    steps};
  const typename Device::Guard guard(weights);
  const Tensor workspace = torch::stable::new_empty(
      weights, std::vector<int64_t>{stacked_workspace<typename Device::Tag>(stack, count)}, ScalarType::Byte);
  stacked_steps<typename Device::Tag>(stack, own.data(), count, workspace.data_ptr(), guard.stream());
}

template <class Device>
void implement_stacked(torch::stable::detail::StableLibrary& m) {
  m.impl("stacked_steps_", TORCH_BOX(&stacked_steps_<Device>));
}

}  // namespace sparsenn::bindings
