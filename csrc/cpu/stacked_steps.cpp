#include "cpu/parallel.h"
#include "cpu/stacked.h"

namespace sparsenn {
namespace cpu {

std::vector<StackedLayer> layers_of(const Stack& stack) {
  std::vector<StackedLayer> layers;
  int64_t start = 0;
  for (int64_t n = 0; n < stack.depth; ++n) {
    const PatchLayer& given = stack.layers[n];
    StackedLayer layer{given, given.length / given.kernel, given.in_channels * given.length, 0, start, 0, {}};
    for (int64_t k = 0; k < given.in_channels * given.kernel; ++k) {
      layer.taps.push_back(k / given.kernel * given.length + k % given.kernel);
    }
    layer.outputs = given.out_channels * layer.positions;
    layer.biases = start + given.filters * given.out_channels * layer.patch();
    start = layer.biases + (given.bias ? given.filters * given.out_channels : 0);
    layers.push_back(std::move(layer));
  }
  return layers;
}

namespace {

// Whether every layer is one product that takes all inputs, and large enough for a run to fill vectors by itself.
// It depends on the structure alone: the two kernels add in other orders.
bool is_dense(const Stack& stack, const std::vector<StackedLayer>& layers) {
  constexpr int64_t kLeast = 1024;  // parameters
  return stack.parameters >= kLeast && std::all_of(layers.begin(), layers.end(), [](const StackedLayer& layer) {
           return layer.filters == 1 && layer.length == layer.kernel;
         });
}

template <class T>
void train(const Stack& stack, const StackedRun* runs, int64_t count) {
  const std::vector<StackedLayer> layers = layers_of(stack);
  if (is_dense(stack, layers)) {
    for_each_part(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) train_dense<T>(stack, layers, runs[n]);
    });
    return;
  }
  std::vector<const StackedRun*> sorted;
  for (int64_t n = 0; n < count; ++n) sorted.push_back(runs + n);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const StackedRun* a, const StackedRun* b) { return kind_of(*a) < kind_of(*b); });
  std::vector<int64_t> starts;
  for (int64_t n = 0; n < count; ++n) {
    const bool fits = n && n - starts.back() < kWide<T> && kind_of(*sorted[n]) == kind_of(*sorted[n - 1]);
    if (!fits) starts.push_back(n);
  }
  starts.push_back(count);
  for_each_part(static_cast<int64_t>(starts.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      train_lanes<T>(stack, layers, sorted.data() + starts[group], starts[group + 1] - starts[group]);
    }
  });
}

}  // namespace
}  // namespace cpu

template <>
int64_t stacked_workspace<Cpu>(const Stack&, int64_t) {
  return 0;
}

template <>
void stacked_steps<Cpu>(const Stack& stack, const StackedRun* runs, int64_t count, void*, void*) {
  if (stack.dtype == DType::float64) {
    cpu::train<double>(stack, runs, count);
  } else {
    cpu::train<float>(stack, runs, count);
  }
}

}  // namespace sparsenn
