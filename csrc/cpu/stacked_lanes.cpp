// Up to kWide small networks of one kind in training at once, one in each lane.
#include "cpu/stacked.h"
#include "cpu/vector.h"

namespace sparsenn::cpu {
namespace {

constexpr int kSamples = 4;  // that go through the network together: each weight is read once for them

// What the layers make of kSamples samples, and the gradients of that: (sample, feature, lane).
template <class T>
struct Signals {
  Signals(int64_t features) : features(features), values(size()), slopes(size()), pulls(size()) {}
  int64_t size() const { return kSamples * features * kWide<T>; }
  int64_t stride() const { return features * kWide<T>; }
  int64_t features;
  Room<T> values, slopes, pulls;
};

template <class T, int kLanes>
struct Ops {
  static constexpr int kVectors = kWide<T> / kLanes;
  struct Wide {
    vector_t<T, kLanes> parts[kVectors];
  };

  static SPARSENN_INLINE void load(Wide& to, const T* from) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) read<kLanes>(to.parts[v], from + v * kLanes);
  }
  static SPARSENN_INLINE void store(T* to, const Wide& from) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) write<kLanes>(to + v * kLanes, from.parts[v]);
  }
  static SPARSENN_INLINE void add_product(Wide& to, const Wide& a, const Wide& b) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) accumulate<kLanes, T>(to.parts[v], a.parts[v], b.parts[v]);
  }

  // z = bias + sum w x, the sum over channels and then along the patch.
  static SPARSENN_INLINE void forward(const StackedLayer& layer, const T* parameters, const T* inputs,
                                      int64_t input_stride, T* z, int64_t z_stride) {
    constexpr int64_t W = kWide<T>;
    const int64_t patch = layer.in_channels * layer.kernel;
    for (int64_t o = 0; o < layer.out_channels; ++o) {
      for (int64_t p = 0; p < layer.positions; ++p) {
        const int64_t filter = (p % layer.filters) * layer.out_channels + o;
        const T* weights = parameters + (layer.weights + filter * patch) * W;
        Wide sums[kSamples] = {};
        if (layer.bias) {
#pragma GCC unroll 4
          for (int s = 0; s < kSamples; ++s) load(sums[s], parameters + (layer.biases + filter) * W);
        }
        for (int64_t c = 0; c < layer.in_channels; ++c) {
          const T* x = inputs + (c * layer.length + p * layer.kernel) * W;
          for (int64_t j = 0; j < layer.kernel; ++j, weights += W, x += W) {
            Wide weight, input;
            load(weight, weights);
#pragma GCC unroll 4
            for (int s = 0; s < kSamples; ++s) load(input, x + s * input_stride), add_product(sums[s], weight, input);
          }
        }
#pragma GCC unroll 4
        for (int s = 0; s < kSamples; ++s) store(z + s * z_stride + (o * layer.positions + p) * W, sums[s]);
      }
    }
  }

  // Adds to the gradients of the parameters; what comes from above is multiplied by the slopes in its place.
  static SPARSENN_INLINE void backward(const StackedLayer& layer, const T* inputs, int64_t input_stride,
                                       const T* slopes, T* pulls, int64_t stride, T* grads) {
    constexpr int64_t W = kWide<T>;
    const int64_t patch = layer.in_channels * layer.kernel;
    for (int64_t o = 0; o < layer.out_channels; ++o) {
      for (int64_t p = 0; p < layer.positions; ++p) {
        const int64_t filter = (p % layer.filters) * layer.out_channels + o, at = (o * layer.positions + p) * W;
        Wide pull[kSamples];
#pragma GCC unroll 4
        for (int s = 0; s < kSamples; ++s) {
          Wide slope;
          load(slope, slopes + s * stride + at), load(pull[s], pulls + s * stride + at);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) pull[s].parts[v] *= slope.parts[v];
          store(pulls + s * stride + at, pull[s]);
        }
        if (layer.bias) {
          T* const to = grads + (layer.biases + filter) * W;
          Wide sum;
          load(sum, to);
#pragma GCC unroll 4
          for (int s = 0; s < kSamples; ++s) {
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sum.parts[v] += pull[s].parts[v];
          }
          store(to, sum);
        }
        T* to = grads + (layer.weights + filter * patch) * W;
        for (int64_t c = 0; c < layer.in_channels; ++c) {
          const T* x = inputs + (c * layer.length + p * layer.kernel) * W;
          for (int64_t j = 0; j < layer.kernel; ++j, to += W, x += W) {
            Wide sum, input;
            load(sum, to);
#pragma GCC unroll 4
            for (int s = 0; s < kSamples; ++s) load(input, x + s * input_stride), add_product(sum, pull[s], input);
            store(to, sum);
          }
        }
      }
    }
  }

  // What the layer hands back to its inputs.
  static SPARSENN_INLINE void hand_back(const StackedLayer& layer, const T* parameters, const T* pulls, int64_t stride,
                                        T* inputs, int64_t input_stride) {
    constexpr int64_t W = kWide<T>;
    const int64_t patch = layer.in_channels * layer.kernel;
    for (int64_t p = 0; p < layer.positions; ++p) {
      for (int64_t k = 0; k < patch; ++k) {
        const int64_t at = (k / layer.kernel * layer.length + p * layer.kernel + k % layer.kernel) * W;
        const T* weights = parameters + (layer.weights + (p % layer.filters) * layer.out_channels * patch + k) * W;
        const T* from = pulls + p * W;
        Wide sums[kSamples] = {};
        for (int64_t o = 0; o < layer.out_channels; ++o, weights += patch * W, from += layer.positions * W) {
          Wide weight, pull;
          load(weight, weights);
#pragma GCC unroll 4
          for (int s = 0; s < kSamples; ++s) load(pull, from + s * stride), add_product(sums[s], weight, pull);
        }
#pragma GCC unroll 4
        for (int s = 0; s < kSamples; ++s) store(inputs + s * input_stride + at, sums[s]);
      }
    }
  }

  // to[k][lane] = rows[lane][k] for a multiple of kWide of features k.
  static SPARSENN_INLINE void transpose(const T* const* rows, int64_t size, T* to) {
    for (int64_t k = 0; k < size; k += kLanes) {
      for (int64_t n = 0; n < kWide<T>; n += kLanes) {
        transpose_square<T, kLanes>([&](int i) SPARSENN_INLINED { return rows[n + i] + k; }, to + k * kWide<T> + n,
                                    kWide<T>);
      }
    }
  }
};

// clang-format off
#define SPARSENN_OPS_FOR(NAME, TARGET, BYTES)                                                                          \
  template <class T>                                                                                                   \
  TARGET void forward_##NAME(const StackedLayer& layer, const T* parameters, const T* inputs, int64_t input_stride,    \
                             T* z, int64_t z_stride) {                                                                 \
    Ops<T, BYTES / sizeof(T)>::forward(layer, parameters, inputs, input_stride, z, z_stride);                          \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void backward_##NAME(const StackedLayer& layer, const T* inputs, int64_t input_stride, const T* slopes,       \
                              T* pulls, int64_t stride, T* grads) {                                                    \
    Ops<T, BYTES / sizeof(T)>::backward(layer, inputs, input_stride, slopes, pulls, stride, grads);                    \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void hand_back_##NAME(const StackedLayer& layer, const T* parameters, const T* pulls, int64_t stride,         \
                               T* inputs, int64_t input_stride) {                                                      \
    Ops<T, BYTES / sizeof(T)>::hand_back(layer, parameters, pulls, stride, inputs, input_stride);                      \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void transpose_##NAME(const T* const* rows, int64_t size, T* to) {                                                 \
    Ops<T, BYTES / sizeof(T)>::transpose(rows, size, to);                                                            \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  constexpr Chosen<T> chosen_##NAME{forward_##NAME<T>, backward_##NAME<T>, hand_back_##NAME<T>, transpose_##NAME<T>};
// clang-format on

// What suits this processor.
template <class T>
struct Chosen {
  void (*forward)(const StackedLayer&, const T*, const T*, int64_t, T*, int64_t);
  void (*backward)(const StackedLayer&, const T*, int64_t, const T*, T*, int64_t, T*);
  void (*hand_back)(const StackedLayer&, const T*, const T*, int64_t, T*, int64_t);
  void (*transpose)(const T* const*, int64_t, T*);
};

SPARSENN_OPS_FOR(base, , 16)
#if defined(SPARSENN_HAS_CLONES)
SPARSENN_OPS_FOR(v3, __attribute__((target("arch=x86-64-v3"))), 32)
SPARSENN_OPS_FOR(v4, __attribute__((target("arch=x86-64-v4"))), 64)
#endif

template <class T>
const Chosen<T>& choose() {
#if defined(SPARSENN_HAS_CLONES)
  if (__builtin_cpu_supports("x86-64-v4")) return chosen_v4<T>;
  if (__builtin_cpu_supports("x86-64-v3")) return chosen_v3<T>;
#endif
  return chosen_base<T>;
}

template <class T>
class Lanes {
 public:
  Lanes(const Stack& stack, const std::vector<StackedLayer>& layers, const StackedRun* const* runs, int64_t count)
      : stack_(stack),
        layers_(layers),
        runs_(runs),
        count_(count),
        kind_(kind_of(*runs[0])),
        ops_(choose<T>()),
        rows_(kind_.optimizer == Optimizer::factorized ? 2 * kind_.depth
              : kind_.optimizer == Optimizer::adam     ? 2
                                                       : 1),
        inputs_(layers.front().inputs),
        outputs_(layers.back().outputs),
        input_stride_(padded(inputs_, W)),
        weights_(stack.parameters * W),
        state_(rows_ * stack.parameters * W),
        grads_(stack.parameters * W),
        edge_(W * input_stride_),
        x_(kSamples * input_stride_ * W),
        targets_(kSamples * outputs_ * W),
        labels_(kSamples * W) {
    for (const StackedLayer& layer : layers) signals_.push_back(std::make_unique<Signals<T>>(layer.outputs));
    std::fill_n(rows_of_, W, static_cast<const T*>(edge_));
    for (int64_t lane = 0; lane < count; ++lane) {
      orders_.emplace_back(stack, runs[lane]->seed);
      inputs_of_[lane] = static_cast<const T*>(stack.x) + runs[lane]->data * stack.samples * inputs_;
    }
  }

  void run() {
    copy<true>();
    for (int64_t step = stack_.first; step < stack_.first + stack_.steps; ++step) {
      const int64_t size = std::min(stack_.batch, stack_.samples - step * stack_.batch);
      const T scale = static_cast<T>(stack_.labels ? size : size * outputs_);
      std::fill_n(static_cast<T*>(grads_), stack_.parameters * W, T(0));
      if (step + 1 < stack_.first + stack_.steps) prefetch(step + 1);
      T sums[W] = {}, penalties[W] = {};
      for (int64_t begin = 0; begin < size; begin += kSamples) {
        gather(step, begin, std::min<int64_t>(kSamples, size - begin));
        forward();
        judge(std::min<int64_t>(kSamples, size - begin), scale, sums);
        backward();
      }
      for (int64_t lane = 0; lane < count_; ++lane) {
        const double t = static_cast<double>(stack_.epoch * batches() + step + 1);
        if (step == stack_.first || kind_.optimizer == Optimizer::adam) {
          rates_.set(lane, StepRates<T>::of(*runs_[lane], t));
        }
      }
      move(kind_, Moves<T>{stack_.parameters * W, weights_, grads_, state_, stack_.parameters * W, &rates_, penalties});
      for (int64_t lane = 0; lane < count_; ++lane) {
        double* const losses = stack_.losses + 2 * runs_[lane]->index;
        losses[0] += static_cast<double>(sums[lane]) / static_cast<double>(scale);
        losses[1] += static_cast<double>(penalties[lane]) * penalty_scale(*runs_[lane]);
      }
    }
    copy<false>();
  }

 private:
  static constexpr int64_t W = kWide<T>;

  int64_t batches() const { return (stack_.samples + stack_.batch - 1) / stack_.batch; }

  // The runs' parameters and states to lanes, or back.
  template <bool kIn>
  void copy() {
    const int64_t size = stack_.parameters;
    for (int64_t lane = 0; lane < count_; ++lane) {
      const int64_t run = runs_[lane]->index;
      copy_lane<kIn>(static_cast<T*>(stack_.weights) + run * size, static_cast<T*>(weights_) + lane, size);
      copy_lane<kIn>(static_cast<T*>(stack_.state) + run * stack_.rows * size, static_cast<T*>(state_) + lane,
                     rows_ * size);
    }
  }

  template <bool kIn>
  static void copy_lane(T* numbers, T* lanes, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      if (kIn) {
        lanes[i * W] = numbers[i];
      } else {
        numbers[i] = lanes[i * W];
      }
    }
  }

  // The rows of a step's samples on the way to the cache.
  void prefetch(int64_t step) {
    const int64_t size = std::min(stack_.batch, stack_.samples - step * stack_.batch);
    for (int64_t lane = 0; lane < count_; ++lane) {
      const int32_t* const own = orders_[lane].of_step(step);
      for (int64_t i = 0; i < size; ++i) {
        const T* const row = inputs_of_[lane] + own[i] * inputs_;
        __builtin_prefetch(row);
        __builtin_prefetch(row + inputs_ - 1);
      }
    }
  }

  // Whole vectors are read from where the samples lie, past their ends; not past that of the last data set's, whose
  // last samples are copied first.
  void gather(int64_t step, int64_t begin, int64_t size) {
    const int64_t all = stack_.sets * stack_.samples * inputs_;
    for (int64_t lane = 0; lane < count_; ++lane) samples_[lane] = orders_[lane].of_step(step) + begin;
    for (int64_t s = 0; s < size; ++s) {
      for (int64_t lane = 0; lane < count_; ++lane) {
        const T* row = inputs_of_[lane] + samples_[lane][s] * inputs_;
        if (row - static_cast<const T*>(stack_.x) > all - input_stride_) {
          std::copy_n(row, inputs_, edge_ + lane * input_stride_);
          row = edge_ + lane * input_stride_;
        }
        rows_of_[lane] = row;
      }
      ops_.transpose(rows_of_, input_stride_, x_ + s * input_stride_ * W);
      for (int64_t lane = 0; lane < count_; ++lane) {
        const int64_t at = runs_[lane]->data * stack_.samples + samples_[lane][s];
        if (stack_.labels) {
          labels_[s * W + lane] = static_cast<const int64_t*>(stack_.y)[at];
        } else {
          const T* const y = static_cast<const T*>(stack_.y) + at * outputs_;
          for (int64_t n = 0; n < outputs_; ++n) targets_[(s * outputs_ + n) * W + lane] = y[n];
        }
      }
    }
  }

  void forward() {
    const T* inputs = x_;
    int64_t stride = input_stride_ * W;
    for (size_t n = 0; n < layers_.size(); ++n) {
      Signals<T>& made = *signals_[n];
      ops_.forward(layers_[n], weights_, inputs, stride, made.slopes, made.stride());
      activate(n + 1 < layers_.size() ? kind_.activation : kind_.last, made.size(), made.slopes, made.values);
      inputs = made.values, stride = made.stride();
    }
  }

  // Samples that are not there pull at nothing.
  void judge(int64_t size, T scale, T* sums) {
    Signals<T>& made = *signals_.back();
    for (int64_t s = 0; s < kSamples; ++s) {
      T* const pulls = made.pulls + s * made.stride();
      if (s < size) {
        lose(Losses<T>{outputs_, made.values + s * made.stride(), stack_.labels ? nullptr : targets_ + s * outputs_ * W,
                       stack_.labels ? labels_ + s * W : nullptr, scale, pulls, sums});
      } else {
        std::fill_n(pulls, made.stride(), T(0));
      }
    }
  }

  void backward() {
    for (size_t n = layers_.size(); n-- > 0;) {
      Signals<T>& made = *signals_[n];
      const T* const inputs = n ? signals_[n - 1]->values : x_;
      const int64_t stride = n ? signals_[n - 1]->stride() : input_stride_ * W;
      ops_.backward(layers_[n], inputs, stride, made.slopes, made.pulls, made.stride(), grads_);
      if (n) ops_.hand_back(layers_[n], weights_, made.pulls, made.stride(), signals_[n - 1]->pulls, stride);
    }
  }

  const Stack& stack_;
  const std::vector<StackedLayer>& layers_;
  const StackedRun* const* runs_;
  const int64_t count_;
  const StepKind kind_;
  const Chosen<T>& ops_;
  const int64_t rows_, inputs_, outputs_, input_stride_;
  Room<T> weights_, state_, grads_, edge_, x_, targets_;
  Room<int64_t> labels_;
  std::vector<std::unique_ptr<Signals<T>>> signals_;
  std::vector<Order> orders_;
  const T *inputs_of_[W], *rows_of_[W];
  const int32_t* samples_[W];
  LaneRates<T> rates_{};
};

}  // namespace

template <class T>
void train_lanes(const Stack& stack, const std::vector<StackedLayer>& layers, const StackedRun* const* runs,
                 int64_t count) {
  Lanes<T>(stack, layers, runs, count).run();
}

template void train_lanes<float>(const Stack&, const std::vector<StackedLayer>&, const StackedRun* const*, int64_t);
template void train_lanes<double>(const Stack&, const std::vector<StackedLayer>&, const StackedRun* const*, int64_t);

}  // namespace sparsenn::cpu
