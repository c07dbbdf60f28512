// A block trains one network: its signals, and its weights too where there is room, lie in the memory that the threads
// share. Sums are formed in the order of the CPU's kernels, and the weights' bits are theirs.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/team.h"
#include "math/activation.h"
#include "math/permutation.h"
#include "math/stacked_steps.h"

namespace sparsenn {
namespace {

constexpr uint32_t kChunk = 4;  // samples of which a convolution's gradient takes one patch after the other

// A layer in numbers of 32 bits, by which the device divides sooner. Where a patch is all of the input its channels are
// one: there are no gaps between them.
struct Layer {
  uint32_t in_channels, length, out_channels, kernel, filters, bias;
  uint32_t positions, patch, inputs, outputs;
  uint32_t weights, biases;  // where they begin among a run's parameters
  uint32_t signals;  // where derivatives, values and deltas, (feature, sample) each, begin among a run's signals

  SPARSENN_INLINE uint32_t own_weights() const { return filters * out_channels * patch; }
  SPARSENN_INLINE uint32_t parameters() const { return own_weights() + (bias ? filters * out_channels : 0); }
};

template <class Body>
SPARSENN_INLINE void with_activation(Activation kind, const Body& body) {
  switch (kind) {
    case Activation::relu:
      return body(std::integral_constant<Activation, Activation::relu>{});
    case Activation::tanh:
      return body(std::integral_constant<Activation, Activation::tanh>{});
    case Activation::sigmoid:
      return body(std::integral_constant<Activation, Activation::sigmoid>{});
    case Activation::gelu:
      return body(std::integral_constant<Activation, Activation::gelu>{});
    default:
      return body(std::integral_constant<Activation, Activation::identity>{});
  }
}

// How a run moves its weights, as template arguments.
template <Optimizer kOptimizer, WeightPenalty kPenalty, int D>
struct Rule {
  template <class T>
  static SPARSENN_INLINE void update(T& weight, T grad, T* state, int64_t stride, const StepRates<T>& rates,
                                     T& penalty) {
    constexpr int kRows = kStateRows<kOptimizer, D>;
    T own[kRows];
    SPARSENN_UNROLL_ALL
    for (int k = 0; k < kRows; ++k) own[k] = state[k * stride];
    weight = stacked_step<kOptimizer, kPenalty, D>(weight, grad, own, rates, penalty);
    SPARSENN_UNROLL_ALL
    for (int k = 0; k < kRows; ++k) state[k * stride] = own[k];
  }
};

template <Optimizer kOptimizer, class Body>
SPARSENN_INLINE void with_penalty(WeightPenalty penalty, const Body& body) {
  switch (penalty) {
    case WeightPenalty::l1:
      return body(Rule<kOptimizer, WeightPenalty::l1, 1>{});
    case WeightPenalty::l2:
      return body(Rule<kOptimizer, WeightPenalty::l2, 1>{});
    default:
      return body(Rule<kOptimizer, WeightPenalty::none, 1>{});
  }
}

template <int D, class Body>
SPARSENN_INLINE void with_depth(int64_t depth, const Body& body) {
  if (depth == D) {
    body(Rule<Optimizer::factorized, WeightPenalty::none, D>{});
  } else if constexpr (D < kMaxUnrolledDepth) {
    with_depth<D + 1>(depth, body);
  }
}

template <class Body>
SPARSENN_INLINE void with_rule(const StackedRun& run, const Body& body) {
  switch (run.optimizer) {
    case Optimizer::factorized:
      return with_depth<1>(run.depth, body);
    case Optimizer::adam:
      return with_penalty<Optimizer::adam>(run.penalty, body);
    case Optimizer::prox:
      return body(Rule<Optimizer::prox, WeightPenalty::none, 1>{});
    default:
      return with_penalty<Optimizer::sgd>(run.penalty, body);
  }
}

// What the threads of a block have in common besides signals and weights.
template <class T>
struct Common {
  Permutation order;
  StepRates<T> rates;
  double losses[cuda::kThreads], penalties[cuda::kThreads];
};

template <class T>
struct TrainRuns {
  Stack stack;
  const StackedRun* runs;
  const Layer* layers;
  int64_t blocks, shared_bytes;
  uint32_t signals, stride;  // how many a run has; from a feature's samples to those of the next
  uint32_t samples;          // where, behind the signals, stand the numbers of the batch's samples
  uint32_t sums;             // how many threads have sums: a power of two
  T* spare;                  // for all runs' signals, where blocks have no room for them
  bool keeps_weights;        // whether blocks have room for these

  template <class Team>
  SPARSENN_INLINE void run(int64_t block, const Team& team, void* shared) const {
    const StackedRun& own = runs[block];
    Common<T>& common = *static_cast<Common<T>*>(shared);
    T* const room = reinterpret_cast<T*>(&common + 1);
    T* const made = spare ? spare + block * signals : room;
    T* const global = static_cast<T*>(stack.weights) + own.index * stack.parameters;
    T* const weights = keeps_weights ? room + (spare ? 0 : signals) : global;
    const uint32_t parameters = static_cast<uint32_t>(stack.parameters);
    if (keeps_weights) team.each(parameters, [&](uint32_t i) { weights[i] = global[i]; });
    team.each(1, [&](uint32_t) { common.order = Permutation(stack.samples, own.seed, stack.epoch); });
    for (int64_t step = stack.first; step < stack.first + stack.steps; ++step) {
      const int64_t left = stack.samples - step * stack.batch;
      const uint32_t size = static_cast<uint32_t>(left < stack.batch ? left : stack.batch);
      gather(own, step, size, team, common, made);
      forward(own, size, team, weights, made);
      compute_losses(own, size, team, common, made);
      backward(own, size, team, weights, common, made);
      add_up(own, size, team, common);
    }
    if (keeps_weights) team.each(parameters, [&](uint32_t i) { global[i] = weights[i]; });
  }

 private:
  SPARSENN_INLINE uint32_t last() const { return static_cast<uint32_t>(stack.depth) - 1; }
  SPARSENN_INLINE double scale(uint32_t size) const {
    return static_cast<double>(stack.labels ? size : int64_t{size} * layers[last()].outputs);
  }
  SPARSENN_INLINE uint32_t* samples_of(T* made) const { return reinterpret_cast<uint32_t*>(made + samples); }
  SPARSENN_INLINE T* derivatives_of(const Layer& layer, T* made) const { return made + layer.signals; }
  SPARSENN_INLINE T* values_of(const Layer& layer, T* made) const {
    return made + layer.signals + layer.outputs * stride;
  }
  SPARSENN_INLINE T* deltas_of(const Layer& layer, T* made) const {
    return made + layer.signals + 2 * layer.outputs * stride;
  }
  SPARSENN_INLINE const T* inputs_of(uint32_t n, T* made) const { return n ? values_of(layers[n - 1], made) : made; }

  // The batch, transposed; sums are emptied, and the rates of the step found.
  template <class Team>
  SPARSENN_INLINE void gather(const StackedRun& own, int64_t step, uint32_t size, const Team& team, Common<T>& common,
                              T* made) const {
    const int64_t batches = (stack.samples + stack.batch - 1) / stack.batch;
    uint32_t* const chosen = samples_of(made);
    team.each(size > cuda::kThreads ? size : cuda::kThreads, [&](uint32_t i) {
      if (i == 0) common.rates = StepRates<T>::of(own, static_cast<double>(stack.epoch * batches + step + 1));
      if (i < cuda::kThreads) common.losses[i] = common.penalties[i] = 0;
      if (i < size) chosen[i] = static_cast<uint32_t>(common.order(step * stack.batch + i));
    });
    const uint32_t width = layers[0].inputs;
    const T* const x = static_cast<const T*>(stack.x) + own.data * stack.samples * width;
    team.each(size * width, [&](uint32_t i) {
      const uint32_t s = i / width, k = i - s * width;
      made[k * stride + s] = x[int64_t{chosen[s]} * width + k];
    });
  }

  template <class Team>
  SPARSENN_INLINE void forward(const StackedRun& own, uint32_t size, const Team& team, const T* weights,
                               T* made) const {
    for (uint32_t n = 0; n <= last(); ++n) {
      const Layer layer = layers[n];
      const T* const inputs = inputs_of(n, made);
      T *const values = values_of(layer, made), *const derivatives = derivatives_of(layer, made);
      with_activation(n < last() ? own.activation : own.last, [&](auto kind) {
        team.each(layer.outputs * size, [&](uint32_t i) {
          const uint32_t feature = i / size, s = i - feature * size;
          const uint32_t o = feature / layer.positions, p = feature - o * layer.positions;
          const uint32_t filter = p % layer.filters * layer.out_channels + o;
          const T* w = weights + layer.weights + filter * layer.patch;
          const T* x = inputs + p * layer.kernel * stride + s;
          T z = layer.bias ? weights[layer.biases + filter] : T(0);
          SPARSENN_ROLLED
          for (uint32_t c = 0; c < layer.in_channels; ++c, w += layer.kernel, x += layer.length * stride) {
            SPARSENN_UNROLL_4
            for (uint32_t j = 0; j < layer.kernel; ++j) z = multiply_add(w[j], x[j * stride], z);
          }
          T derivative;
          values[feature * stride + s] = activation<decltype(kind)::value>(z, derivative);
          derivatives[feature * stride + s] = derivative;
        });
      });
    }
  }

  template <class Team>
  SPARSENN_INLINE void compute_losses(const StackedRun& own, uint32_t size, const Team& team, Common<T>& common,
                                      T* made) const {
    const Layer layer = layers[last()];
    const T total = static_cast<T>(scale(size));
    const uint32_t* const chosen = samples_of(made);
    team.each(size < cuda::kThreads ? size : cuda::kThreads, [&](uint32_t first) {
      for (uint32_t s = first; s < size; s += cuda::kThreads) {
        const int64_t at = own.data * stack.samples + chosen[s];
        const T* const a = values_of(layer, made) + s;
        T* const deltas = deltas_of(layer, made) + s;
        common.losses[first] += static_cast<double>(stack.labels ? entropy(at, layer.outputs, total, a, deltas)
                                                                 : squares(at, layer.outputs, total, a, deltas));
      }
    });
  }

  SPARSENN_INLINE T squares(int64_t at, uint32_t count, T total, const T* a, T* deltas) const {
    const T* const y = static_cast<const T*>(stack.y) + at * count;
    const T twice = 2 / total;
    T sum = 0;
    SPARSENN_ROLLED
    for (uint32_t n = 0; n < count; ++n) {
      const T gap = a[n * stride] - y[n];
      sum = multiply_add(gap, gap, sum);
      deltas[n * stride] = gap * twice;
    }
    return sum;
  }

  SPARSENN_INLINE T entropy(int64_t at, uint32_t count, T total, const T* a, T* deltas) const {
    const uint32_t label = static_cast<uint32_t>(static_cast<const int64_t*>(stack.y)[at]);
    T most = a[0], sum = 0;
    SPARSENN_ROLLED
    for (uint32_t n = 1; n < count; ++n) most = a[n * stride] > most ? a[n * stride] : most;
    SPARSENN_ROLLED
    for (uint32_t n = 0; n < count; ++n) {
      const T share = exponential<Sign::negative>(a[n * stride] - most);
      deltas[n * stride] = share;
      sum += share;
    }
    const T part = T(1) / total;
    SPARSENN_ROLLED
    for (uint32_t n = 0; n < count; ++n) {
      deltas[n * stride] = (deltas[n * stride] / sum - (n == label ? T(1) : T(0))) * part;
    }
    return logarithm(sum) + most - a[label * stride];
  }

  template <class Team>
  SPARSENN_INLINE void backward(const StackedRun& own, uint32_t size, const Team& team, T* weights, Common<T>& common,
                                T* made) const {
    T* const state = static_cast<T*>(stack.state) + own.index * stack.rows * stack.parameters;
    for (uint32_t n = last() + 1; n-- > 0;) {
      const Layer layer = layers[n];
      T* const deltas = deltas_of(layer, made);
      const T *const derivatives = derivatives_of(layer, made), *const inputs = inputs_of(n, made);
      team.each(layer.outputs * size, [&](uint32_t i) {
        const uint32_t feature = i / size, at = feature * stride + i - feature * size;
        deltas[at] *= derivatives[at];
      });
      if (n) backward_input(layer, size, team, weights, deltas, deltas_of(layers[n - 1], made));
      const uint32_t own_weights = layer.own_weights(), count = layer.parameters();
      with_rule(own, [&](auto rule) {
        team.each(count < cuda::kThreads ? count : cuda::kThreads, [&](uint32_t first) {
          T penalty = 0;
          SPARSENN_ROLLED
          for (uint32_t i = first; i < count; i += cuda::kThreads) {
            const T grad = i < own_weights ? gradient(layer, size, i, deltas, inputs)
                                           : bias_gradient(layer, size, i - own_weights, deltas);
            const uint32_t at = layer.weights + i;
            rule.update(weights[at], grad, state + at, stack.parameters, common.rates, penalty);
          }
          common.penalties[first] += static_cast<double>(penalty);
        });
      });
    }
  }

  template <class Team>
  SPARSENN_INLINE void backward_input(const Layer& layer, uint32_t size, const Team& team, const T* weights,
                                      const T* deltas, T* to) const {
    team.each(layer.inputs * size, [&](uint32_t i) {
      const uint32_t feature = i / size, s = i - feature * size;
      const uint32_t c = feature / layer.length, l = feature - c * layer.length;
      const uint32_t p = l / layer.kernel, k = c * layer.kernel + l - p * layer.kernel;
      T sum = 0;
      if (p < layer.positions) {
        const T* const w = weights + layer.weights + p % layer.filters * layer.out_channels * layer.patch + k;
        const T* const delta = deltas + p * stride + s;
        const uint32_t next = layer.positions * stride;
        SPARSENN_UNROLL_4
        for (uint32_t o = 0; o < layer.out_channels; ++o) sum = multiply_add(w[o * layer.patch], delta[o * next], sum);
      }
      to[feature * stride + s] = sum;
    });
  }

  // Calls body(p, begin, count) for the deltas at a filter: samples by chunks, and of a chunk one patch after the
  // other.
  template <class Body>
  SPARSENN_INLINE void for_each_chunk(const Layer& layer, uint32_t f, uint32_t size, const Body& body) const {
    SPARSENN_ROLLED
    for (uint32_t begin = 0; begin < size; begin += kChunk) {
      const uint32_t count = size - begin < kChunk ? size - begin : kChunk;
      SPARSENN_ROLLED
      for (uint32_t p = f; p < layer.positions; p += layer.filters) body(p, begin, count);
    }
  }

  // Of weight i of a layer. A stride that is odd keeps threads of neighbouring weights in different banks.
  SPARSENN_INLINE T gradient(const Layer& layer, uint32_t size, uint32_t i, const T* deltas, const T* inputs) const {
    const uint32_t filter = i / layer.patch, k = i - filter * layer.patch, f = filter / layer.out_channels;
    const uint32_t o = filter - f * layer.out_channels, c = k / layer.kernel;
    const T* const x = inputs + (c * layer.length + k - c * layer.kernel) * stride;
    const T* const delta = deltas + o * layer.positions * stride;
    T sum = 0;
    for_each_chunk(layer, f, size, [&](uint32_t p, uint32_t begin, uint32_t count) {
      const T *const a = delta + p * stride + begin, *const b = x + p * layer.kernel * stride + begin;
      if (count == kChunk) {
        SPARSENN_UNROLL
        for (uint32_t s = 0; s < kChunk; ++s) sum = multiply_add(a[s], b[s], sum);
      } else {
        SPARSENN_ROLLED
        for (uint32_t s = 0; s < count; ++s) sum = multiply_add(a[s], b[s], sum);
      }
    });
    return sum;
  }

  SPARSENN_INLINE T bias_gradient(const Layer& layer, uint32_t size, uint32_t filter, const T* deltas) const {
    const uint32_t f = filter / layer.out_channels;
    const T* const delta = deltas + (filter - f * layer.out_channels) * layer.positions * stride;
    T sum = 0;
    for_each_chunk(layer, f, size, [&](uint32_t p, uint32_t begin, uint32_t count) {
      const T* const a = delta + p * stride + begin;
      SPARSENN_ROLLED
      for (uint32_t s = 0; s < count; ++s) sum += a[s];
    });
    return sum;
  }

  // The threads' sums, in halves.
  template <class Team>
  SPARSENN_INLINE void add_up(const StackedRun& own, uint32_t size, const Team& team, Common<T>& common) const {
    for (uint32_t half = sums / 2; half > 0; half /= 2) {
      team.each(half, [&](uint32_t i) {
        common.losses[i] += common.losses[i + half];
        common.penalties[i] += common.penalties[i + half];
      });
    }
    team.each(1, [&](uint32_t) {
      double* const losses = stack.losses + 2 * own.index;
      losses[0] += common.losses[0] / scale(size);
      losses[1] += common.penalties[0] * penalty_scale(own);
    });
  }
};

constexpr int64_t aligned(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Where a run has its signals, and a workspace the runs, the layers and the signals that blocks have no room for.
template <class T>
struct Workspace {
  int64_t stride, signals, samples, layers_at, signals_at, bytes, shared_bytes = sizeof(Common<T>);
  uint32_t sums = 1;
  bool spares, keeps_weights;
  std::vector<Layer> layers;

  Workspace(const Stack& stack, int64_t count) : stride(stack.batch | 1) {
    signals = stack.layers[0].in_channels * stack.layers[0].length * stride;
    int64_t start = 0, most_parameters = stack.batch;
    for (int64_t n = 0; n < stack.depth; ++n) {
      add(stack.layers[n], start);
      most_parameters = std::max<int64_t>(most_parameters, layers.back().parameters());
    }
    samples = signals;
    signals += (stack.batch * sizeof(uint32_t) + sizeof(T) - 1) / sizeof(T);
    check(signals, stack.parameters);
    while (sums < cuda::kThreads && sums < most_parameters) sums *= 2;
    const int64_t most = cuda::most_shared_bytes(), of_signals = signals * static_cast<int64_t>(sizeof(T));
    const int64_t of_weights = stack.parameters * static_cast<int64_t>(sizeof(T));
    spares = shared_bytes + of_signals > most;
    shared_bytes += spares ? 0 : of_signals;
    keeps_weights = shared_bytes + of_weights <= most;
    shared_bytes += keeps_weights ? of_weights : 0;
    layers_at = aligned(count * static_cast<int64_t>(sizeof(StackedRun)));
    signals_at = layers_at + aligned(stack.depth * static_cast<int64_t>(sizeof(Layer)));
    bytes = signals_at + (spares ? count * of_signals : 0);
  }

 private:
  // The next layer, whose parameters begin at `start`.
  void add(const PatchLayer& given, int64_t& start) {
    const bool whole = given.kernel == given.length;
    const int64_t channels = whole ? 1 : given.in_channels, length = given.in_channels * given.length / channels;
    const int64_t kernel = whole ? length : given.kernel, positions = length / kernel;
    const int64_t outputs = given.out_channels * positions, filters = given.filters * given.out_channels;
    const int64_t biases = start + filters * channels * kernel, end = biases + (given.bias ? filters : 0);
    check(signals + 3 * outputs * stride, end);
    const auto narrow = [](int64_t number) { return static_cast<uint32_t>(number); };
    layers.push_back({narrow(channels), narrow(length), narrow(given.out_channels), narrow(kernel),
                      narrow(given.filters), given.bias, narrow(positions), narrow(channels * kernel),
                      narrow(channels * length), narrow(outputs), narrow(start), narrow(biases), narrow(signals)});
    signals += 3 * outputs * stride;
    start = end;
  }

  static void check(int64_t signals, int64_t parameters) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    if (signals <= kMost && parameters <= kMost) return;
    throw std::runtime_error(
        "sparsenn::stacked_steps_: a run with more than 2^31 - 1 weights, or as many numbers in a batch, does not fit "
        "the CUDA kernel; take a smaller batch_size, or a training loop of its own");
  }
};

template <class T>
void train(const Stack& stack, const StackedRun* runs, int64_t count, void* workspace, void* stream) {
  const Workspace<T> plan(stack, count);
  char* const memory = static_cast<char*>(workspace);
  std::vector<char> tables(plan.signals_at);
  std::memcpy(tables.data(), runs, count * sizeof(StackedRun));
  std::memcpy(tables.data() + plan.layers_at, plan.layers.data(), stack.depth * sizeof(Layer));
  cuda::upload(memory, tables.data(), plan.signals_at, stream);
  cuda::launch_team(
      TrainRuns<T>{stack, reinterpret_cast<const StackedRun*>(memory),
                   reinterpret_cast<const Layer*>(memory + plan.layers_at), count, plan.shared_bytes,
                   static_cast<uint32_t>(plan.signals), static_cast<uint32_t>(plan.stride),
                   static_cast<uint32_t>(plan.samples), plan.sums,
                   plan.spares ? reinterpret_cast<T*>(memory + plan.signals_at) : nullptr, plan.keeps_weights},
      stream);
}

}  // namespace

template <>
int64_t stacked_workspace<Cuda>(const Stack& stack, int64_t count) {
  return stack.dtype == DType::float64 ? Workspace<double>(stack, count).bytes : Workspace<float>(stack, count).bytes;
}

template <>
void stacked_steps<Cuda>(const Stack& stack, const StackedRun* runs, int64_t count, void* workspace, void* stream) {
  if (stack.dtype == DType::float64) {
    train<double>(stack, runs, count, workspace, stream);
  } else {
    train<float>(stack, runs, count, workspace, stream);
  }
}

}  // namespace sparsenn
