// A block trains one network: its signals, and its weights too where there is room, lie in the memory that the threads
// share. Sums are formed in the order of the CPU's kernels, and the weights' bits are theirs.
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/team.h"
#include "math/activation.h"
#include "math/permutation.h"
#include "math/stacked_steps.h"

namespace sparsenn {
namespace {

constexpr int64_t kChunk = 4;  // samples of which a convolution's gradient takes one patch after the other

struct Layer : PatchLayer {
  int64_t positions, patch, inputs, outputs;
  int64_t weights, biases;  // where they begin among a run's parameters
  int64_t signals;          // where slopes, values and pulls, (feature, sample) each, begin among a run's signals
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
  static SPARSENN_INLINE void move(T& weight, T grad, T* state, int64_t stride, const StepRates<T>& rates, T& penalty) {
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
  int64_t signals;     // of a run
  T* spare;            // for all runs' signals, where blocks have no room for them
  bool keeps_weights;  // whether blocks have room for these

  template <class Team>
  SPARSENN_INLINE void run(int64_t block, const Team& team, void* shared) const {
    const StackedRun& own = runs[block];
    Common<T>& common = *static_cast<Common<T>*>(shared);
    T* const room = reinterpret_cast<T*>(&common + 1);
    T* const made = spare ? spare + block * signals : room;
    T* const global = static_cast<T*>(stack.weights) + own.index * stack.parameters;
    T* const weights = keeps_weights ? room + (spare ? 0 : signals) : global;
    if (keeps_weights) team.each(stack.parameters, [&](int64_t i) { weights[i] = global[i]; });
    team.each(1, [&](int64_t) { common.order = Permutation(stack.samples, own.seed, stack.epoch); });
    for (int64_t step = stack.first; step < stack.first + stack.steps; ++step) {
      const int64_t left = stack.samples - step * stack.batch, size = left < stack.batch ? left : stack.batch;
      gather(own, step, size, team, common, made);
      forward(own, size, team, weights, made);
      judge(own, step, size, team, common, made);
      backward(own, size, team, weights, common, made);
      add_up(own, size, team, common);
    }
    if (keeps_weights) team.each(stack.parameters, [&](int64_t i) { global[i] = weights[i]; });
  }

 private:
  SPARSENN_INLINE int64_t outputs() const { return layers[stack.depth - 1].outputs; }
  SPARSENN_INLINE double scale(int64_t size) const {
    return static_cast<double>(stack.labels ? size : size * outputs());
  }
  SPARSENN_INLINE int64_t place(const StackedRun& own, int64_t step, int64_t s, const Common<T>& common) const {
    return own.data * stack.samples + common.order(step * stack.batch + s);
  }
  SPARSENN_INLINE T* slopes_of(const Layer& layer, T* made) const { return made + layer.signals; }
  SPARSENN_INLINE T* values_of(const Layer& layer, T* made) const {
    return made + layer.signals + layer.outputs * stack.batch;
  }
  SPARSENN_INLINE T* pulls_of(const Layer& layer, T* made) const {
    return made + layer.signals + 2 * layer.outputs * stack.batch;
  }
  SPARSENN_INLINE const T* inputs_of(int64_t n, T* made) const { return n ? values_of(layers[n - 1], made) : made; }

  // The batch, transposed; sums are emptied, and the rates of the step found.
  template <class Team>
  SPARSENN_INLINE void gather(const StackedRun& own, int64_t step, int64_t size, const Team& team, Common<T>& common,
                              T* made) const {
    const int64_t width = layers[0].inputs, batches = (stack.samples + stack.batch - 1) / stack.batch;
    team.each(size > cuda::kThreads ? size : cuda::kThreads, [&](int64_t i) {
      if (i == 0) common.rates = StepRates<T>::of(own, static_cast<double>(stack.epoch * batches + step + 1));
      if (i < cuda::kThreads) common.losses[i] = common.penalties[i] = 0;
      if (i >= size) return;
      const T* const row = static_cast<const T*>(stack.x) + place(own, step, i, common) * width;
      SPARSENN_ROLLED
      for (int64_t k = 0; k < width; ++k) made[k * stack.batch + i] = row[k];
    });
  }

  template <class Team>
  SPARSENN_INLINE void forward(const StackedRun& own, int64_t size, const Team& team, const T* weights, T* made) const {
    for (int64_t n = 0; n < stack.depth; ++n) {
      const Layer& layer = layers[n];
      const T* const inputs = inputs_of(n, made);
      with_activation(n + 1 < stack.depth ? own.activation : own.last, [&](auto kind) {
        team.each(layer.outputs * size, [&](int64_t i) {
          const int64_t s = i % size, feature = i / size, o = feature / layer.positions, p = feature % layer.positions;
          const int64_t filter = (p % layer.filters) * layer.out_channels + o;
          const T* w = weights + layer.weights + filter * layer.patch;
          T z = layer.bias ? weights[layer.biases + filter] : T(0);
          SPARSENN_ROLLED
          for (int64_t c = 0; c < layer.in_channels; ++c) {
            const T* x = inputs + (c * layer.length + p * layer.kernel) * stack.batch + s;
            SPARSENN_ROLLED
            for (int64_t j = 0; j < layer.kernel; ++j, ++w, x += stack.batch) z = multiply_add(*w, *x, z);
          }
          T slope;
          values_of(layer, made)[feature * stack.batch + s] = activation<decltype(kind)::value>(z, slope);
          slopes_of(layer, made)[feature * stack.batch + s] = slope;
        });
      });
    }
  }

  template <class Team>
  SPARSENN_INLINE void judge(const StackedRun& own, int64_t step, int64_t size, const Team& team, Common<T>& common,
                             T* made) const {
    const Layer& layer = layers[stack.depth - 1];
    const T total = static_cast<T>(scale(size));
    team.each(size < cuda::kThreads ? size : cuda::kThreads, [&](int64_t first) {
      for (int64_t s = first; s < size; s += cuda::kThreads) {
        const int64_t at = place(own, step, s, common);
        const T* const a = values_of(layer, made) + s;
        T* const pulls = pulls_of(layer, made) + s;
        common.losses[first] += static_cast<double>(stack.labels ? entropy(at, layer.outputs, total, a, pulls)
                                                                 : squares(at, layer.outputs, total, a, pulls));
      }
    });
  }

  SPARSENN_INLINE T squares(int64_t at, int64_t count, T total, const T* a, T* pulls) const {
    const T* const y = static_cast<const T*>(stack.y) + at * count;
    const T twice = 2 / total;
    T sum = 0;
    SPARSENN_ROLLED
    for (int64_t n = 0; n < count; ++n) {
      const T gap = a[n * stack.batch] - y[n];
      sum = multiply_add(gap, gap, sum);
      pulls[n * stack.batch] = gap * twice;
    }
    return sum;
  }

  SPARSENN_INLINE T entropy(int64_t at, int64_t count, T total, const T* a, T* pulls) const {
    const int64_t label = static_cast<const int64_t*>(stack.y)[at];
    T most = a[0], sum = 0;
    SPARSENN_ROLLED
    for (int64_t n = 1; n < count; ++n) most = a[n * stack.batch] > most ? a[n * stack.batch] : most;
    SPARSENN_ROLLED
    for (int64_t n = 0; n < count; ++n) {
      const T share = exponential<Sign::negative>(a[n * stack.batch] - most);
      pulls[n * stack.batch] = share;
      sum += share;
    }
    const T part = T(1) / total;
    SPARSENN_ROLLED
    for (int64_t n = 0; n < count; ++n) {
      pulls[n * stack.batch] = (pulls[n * stack.batch] / sum - (n == label ? T(1) : T(0))) * part;
    }
    return logarithm(sum) + most - a[label * stack.batch];
  }

  template <class Team>
  SPARSENN_INLINE void backward(const StackedRun& own, int64_t size, const Team& team, T* weights, Common<T>& common,
                                T* made) const {
    T* const state = static_cast<T*>(stack.state) + own.index * stack.rows * stack.parameters;
    for (int64_t n = stack.depth - 1; n >= 0; --n) {
      const Layer& layer = layers[n];
      T* const pulls = pulls_of(layer, made);
      const T *const slopes = slopes_of(layer, made), *const inputs = inputs_of(n, made);
      team.each(layer.outputs * size, [&](int64_t i) {
        const int64_t at = i / size * stack.batch + i % size;
        pulls[at] *= slopes[at];
      });
      if (n) hand_back(layer, size, team, weights, pulls, pulls_of(layers[n - 1], made));
      const int64_t own_weights = layer.biases - layer.weights;
      const int64_t count = own_weights + (layer.bias ? layer.filters * layer.out_channels : 0);
      with_rule(own, [&](auto rule) {
        team.each(count < cuda::kThreads ? count : cuda::kThreads, [&](int64_t first) {
          T penalty = 0;
          SPARSENN_ROLLED
          for (int64_t i = first; i < count; i += cuda::kThreads) {
            const T grad = i < own_weights ? gradient(layer, size, i, pulls, inputs)
                                           : bias_gradient(layer, size, i - own_weights, pulls);
            const int64_t at = layer.weights + i;
            rule.move(weights[at], grad, state + at, stack.parameters, common.rates, penalty);
          }
          common.penalties[first] += static_cast<double>(penalty);
        });
      });
    }
  }

  template <class Team>
  SPARSENN_INLINE void hand_back(const Layer& layer, int64_t size, const Team& team, const T* weights, const T* pulls,
                                 T* to) const {
    team.each(layer.inputs * size, [&](int64_t i) {
      const int64_t s = i % size, feature = i / size, c = feature / layer.length, l = feature % layer.length;
      const int64_t p = l / layer.kernel, k = c * layer.kernel + l % layer.kernel;
      T sum = 0;
      if (p < layer.positions) {
        const T* w = weights + layer.weights + (p % layer.filters) * layer.out_channels * layer.patch + k;
        const T* pull = pulls + p * stack.batch + s;
        SPARSENN_ROLLED
        for (int64_t o = 0; o < layer.out_channels; ++o, w += layer.patch, pull += layer.positions * stack.batch) {
          sum = multiply_add(*w, *pull, sum);
        }
      }
      to[feature * stack.batch + s] = sum;
    });
  }

  // Of weight i of a layer.
  SPARSENN_INLINE T gradient(const Layer& layer, int64_t size, int64_t i, const T* pulls, const T* inputs) const {
    const int64_t filter = i / layer.patch, k = i % layer.patch, f = filter / layer.out_channels;
    const int64_t o = filter % layer.out_channels;
    const T* const x = inputs + (k / layer.kernel * layer.length + k % layer.kernel) * stack.batch;
    const T* const pull = pulls + o * layer.positions * stack.batch;
    T sum = 0;
    SPARSENN_ROLLED
    for (int64_t begin = 0; begin < size; begin += kChunk) {
      const int64_t end = begin + kChunk < size ? begin + kChunk : size;
      SPARSENN_ROLLED
      for (int64_t p = f; p < layer.positions; p += layer.filters) {
        SPARSENN_ROLLED
        for (int64_t s = begin; s < end; ++s) {
          sum = multiply_add(pull[p * stack.batch + s], x[p * layer.kernel * stack.batch + s], sum);
        }
      }
    }
    return sum;
  }

  SPARSENN_INLINE T bias_gradient(const Layer& layer, int64_t size, int64_t filter, const T* pulls) const {
    const int64_t f = filter / layer.out_channels;
    const T* const pull = pulls + filter % layer.out_channels * layer.positions * stack.batch;
    T sum = 0;
    SPARSENN_ROLLED
    for (int64_t begin = 0; begin < size; begin += kChunk) {
      const int64_t end = begin + kChunk < size ? begin + kChunk : size;
      SPARSENN_ROLLED
      for (int64_t p = f; p < layer.positions; p += layer.filters) {
        SPARSENN_ROLLED
        for (int64_t s = begin; s < end; ++s) sum += pull[p * stack.batch + s];
      }
    }
    return sum;
  }

  // The threads' sums, in halves.
  template <class Team>
  SPARSENN_INLINE void add_up(const StackedRun& own, int64_t size, const Team& team, Common<T>& common) const {
    for (int64_t half = cuda::kThreads / 2; half > 0; half /= 2) {
      team.each(half, [&](int64_t i) {
        common.losses[i] += common.losses[i + half];
        common.penalties[i] += common.penalties[i + half];
      });
    }
    team.each(1, [&](int64_t) {
      double* const losses = stack.losses + 2 * own.index;
      losses[0] += common.losses[0] / scale(size);
      losses[1] += common.penalties[0] * penalty_scale(own);
    });
  }
};

// The layers with their places; `signals` becomes the size of a run's.
std::vector<Layer> layers_of(const Stack& stack, int64_t& signals) {
  std::vector<Layer> layers;
  int64_t start = 0;
  signals = stack.layers[0].in_channels * stack.layers[0].length * stack.batch;
  for (int64_t n = 0; n < stack.depth; ++n) {
    const PatchLayer& given = stack.layers[n];
    const int64_t positions = given.length / given.kernel, patch = given.in_channels * given.kernel;
    Layer layer{given, positions, patch,  given.in_channels * given.length, given.out_channels * positions,
                start, 0,         signals};
    layer.biases = start + given.filters * given.out_channels * patch;
    start = layer.biases + (given.bias ? given.filters * given.out_channels : 0);
    signals += 3 * layer.outputs * stack.batch;
    layers.push_back(layer);
  }
  return layers;
}

constexpr int64_t aligned(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Where a workspace has the runs, the layers and the signals that blocks have no room for.
template <class T>
struct Workspace {
  int64_t signals = 0, layers_at, signals_at, bytes, shared_bytes = sizeof(Common<T>);
  bool spares, keeps_weights;
  std::vector<Layer> layers;

  Workspace(const Stack& stack, int64_t count) : layers(layers_of(stack, signals)) {
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
};

template <class T>
void train(const Stack& stack, const StackedRun* runs, int64_t count, void* workspace, void* stream) {
  const Workspace<T> plan(stack, count);
  char* const memory = static_cast<char*>(workspace);
  cuda::upload(memory, runs, count * sizeof(StackedRun), stream);
  cuda::upload(memory + plan.layers_at, plan.layers.data(), stack.depth * sizeof(Layer), stream);
  cuda::launch_team(
      TrainRuns<T>{stack, reinterpret_cast<const StackedRun*>(memory),
                   reinterpret_cast<const Layer*>(memory + plan.layers_at), count, plan.shared_bytes, plan.signals,
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
