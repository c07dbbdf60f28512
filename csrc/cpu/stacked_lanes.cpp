// Up to kWide small networks of one kind in training at once, one in each lane.
#include "cpu/stacked.h"
#include "cpu/vector.h"

namespace sparsenn::cpu {
namespace {

constexpr int kSamples = 4;      // that go through the network together: each weight is read once for them
constexpr int64_t kSummed = 64;  // whose losses are added up in T, not in double

// The numbers of one feature of kSamples samples, one behind the other.
template <class T>
constexpr int64_t kFeature = kSamples * kWide<T>;

// What a layer makes of kSamples samples, the derivatives of its activation, and the deltas (the gradients of the
// loss): (feature, sample, lane).
template <class T>
struct Signals {
  Signals(int64_t features) : size(features * kFeature<T>), values(size), derivatives(size), deltas(size) {}
  int64_t size;
  AlignedBuffer<T> values, derivatives, deltas;
};

// What a step reads: where the samples' rows lie (sample, lane), and what the network should make of them, for kSamples
// after kSamples (output, sample, lane), or labels (sample, lane).
template <class T>
struct Batch {
  Batch(int64_t size, int64_t outputs)
      : rows(size * kWide<T>), targets(padded(size, kSamples) * outputs * kWide<T>), labels(size * kWide<T>) {}
  AlignedBuffer<const T*> rows;
  AlignedBuffer<T> targets;
  AlignedBuffer<int64_t> labels;
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
  // The numbers of one feature of all samples.
  static SPARSENN_INLINE void load(Wide (&to)[kSamples], const T* from) {
#pragma GCC unroll 4
    for (int s = 0; s < kSamples; ++s) load(to[s], from + s * kWide<T>);
  }
  static SPARSENN_INLINE void store(T* to, const Wide (&from)[kSamples]) {
#pragma GCC unroll 4
    for (int s = 0; s < kSamples; ++s) store(to + s * kWide<T>, from[s]);
  }
  static SPARSENN_INLINE void add_product(Wide& to, const Wide& a, const Wide& b) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) accumulate<kLanes, T>(to.parts[v], a.parts[v], b.parts[v]);
  }
  static SPARSENN_INLINE void add(Wide& to, const Wide& a) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) to.parts[v] += a.parts[v];
  }
  static SPARSENN_INLINE void multiply(Wide& to, const Wide& a) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) to.parts[v] *= a.parts[v];
  }

  // Filters, or inputs of a patch, that are worked on together, so that what they share is read once for them.
  static constexpr int kTile = sizeof(vector_t<T, kLanes>) == 64 ? 4 : 1;

  // Calls body(number, first) for tiles of kTile numbers, then for one after the other.
  template <class Body>
  static SPARSENN_INLINE void for_each_tile(int64_t size, const Body& body) {
    int64_t first = 0;
    for (; first + kTile <= size; first += kTile) body(std::integral_constant<int, kTile>(), first);
    for (; first < size; ++first) body(std::integral_constant<int, 1>(), first);
  }

  // Calls body(p, shared) for every position of the patch; `shared` is which of the layer's filters are used there.
  template <class Body>
  static SPARSENN_INLINE void for_each_position(const StackedLayer& layer, const Body& body) {
    int64_t shared = 0;
    for (int64_t p = 0; p < layer.positions; ++p) {
      body(p, shared);
      if (++shared == layer.filters) shared = 0;
    }
  }

  // Calls body(number, filter, output, x) for the filters of every position, a tile at a time: which of the layer's is
  // the first, where its output stands among the features, and the inputs of the position's patch.
  template <class Body>
  static SPARSENN_INLINE void for_each_filter(const StackedLayer& layer, const T* inputs, const Body& body) {
    for_each_position(layer, [&](int64_t p, int64_t shared) SPARSENN_INLINED {
      const T* const x = inputs + p * layer.kernel * kFeature<T>;
      for_each_tile(layer.out_channels, [&](auto tile, int64_t o) SPARSENN_INLINED {
        body(tile, shared * layer.out_channels + o, o * layer.positions + p, x);
      });
    });
  }

  // z = bias + sum w x, the sum over channels and then along the patch.
  static SPARSENN_INLINE void forward(const StackedLayer& layer, const T* parameters, const T* inputs, T* z) {
    constexpr int64_t W = kWide<T>, F = kFeature<T>;
    const int64_t patch = layer.patch(), positions = layer.positions;
    for_each_filter(layer, inputs, [&](auto tile, int64_t filter, int64_t at, const T* x) SPARSENN_INLINED {
      constexpr int N = tile();
      const T* const weights = parameters + (layer.weights + filter * patch) * W;
      Wide sums[N][kSamples] = {};
      if (layer.bias) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
          for (int s = 0; s < kSamples; ++s) load(sums[n][s], parameters + (layer.biases + filter + n) * W);
        }
      }
      for (int64_t k = 0; k < patch; ++k) {
        Wide weight, input[kSamples];
        load(input, x + layer.taps[k] * F);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          load(weight, weights + (n * patch + k) * W);
#pragma GCC unroll 4
          for (int s = 0; s < kSamples; ++s) add_product(sums[n][s], weight, input[s]);
        }
      }
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) store(z + (at + n * positions) * F, sums[n]);
    });
  }

  // Adds to the gradients of the parameters; the deltas that come from above are multiplied by the derivatives, in
  // place.
  static SPARSENN_INLINE void backward(const StackedLayer& layer, const T* inputs, const T* derivatives, T* deltas,
                                       T* grads) {
    constexpr int64_t W = kWide<T>, F = kFeature<T>;
    const int64_t patch = layer.patch(), positions = layer.positions;
    for_each_filter(layer, inputs, [&](auto tile, int64_t filter, int64_t at, const T* x) SPARSENN_INLINED {
      constexpr int N = tile();
      Wide delta[N][kSamples];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const int64_t own = (at + n * positions) * F;
        Wide derivative[kSamples];
        load(derivative, derivatives + own), load(delta[n], deltas + own);
#pragma GCC unroll 4
        for (int s = 0; s < kSamples; ++s) multiply(delta[n][s], derivative[s]);
        store(deltas + own, delta[n]);
        if (layer.bias) {
          T* const to = grads + (layer.biases + filter + n) * W;
          Wide sum;
          load(sum, to);
#pragma GCC unroll 4
          for (int s = 0; s < kSamples; ++s) add(sum, delta[n][s]);
          store(to, sum);
        }
      }
      T* const sums = grads + (layer.weights + filter * patch) * W;
      for (int64_t k = 0; k < patch; ++k) {
        Wide sum, input[kSamples];
        load(input, x + layer.taps[k] * F);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          T* const to = sums + (n * patch + k) * W;
          load(sum, to);
#pragma GCC unroll 4
          for (int s = 0; s < kSamples; ++s) add_product(sum, delta[n][s], input[s]);
          store(to, sum);
        }
      }
    });
  }

  // What the layer hands back to its inputs.
  static SPARSENN_INLINE void backward_input(const StackedLayer& layer, const T* parameters, const T* deltas,
                                             T* inputs) {
    constexpr int64_t W = kWide<T>, F = kFeature<T>;
    const int64_t patch = layer.patch(), positions = layer.positions;
    for_each_position(layer, [&](int64_t p, int64_t shared) SPARSENN_INLINED {
      T* const x = inputs + p * layer.kernel * F;
      for_each_tile(patch, [&](auto tile, int64_t k) SPARSENN_INLINED {
        constexpr int N = tile();
        const T* weights = parameters + (layer.weights + shared * layer.out_channels * patch + k) * W;
        const T* from = deltas + p * F;
        Wide sums[N][kSamples] = {};
        for (int64_t o = 0; o < layer.out_channels; ++o, weights += patch * W, from += positions * F) {
          Wide weight, delta[kSamples];
          load(delta, from);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            load(weight, weights + n * W);
#pragma GCC unroll 4
            for (int s = 0; s < kSamples; ++s) add_product(sums[n][s], weight, delta[s]);
          }
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(x + layer.taps[k + n] * F, sums[n]);
      });
    });
  }

  // to[k][0][lane] = rows[lane][k] for a multiple of kWide of features k.
  static SPARSENN_INLINE void transpose(const T* const* rows, int64_t size, T* to) {
    for (int64_t k = 0; k < size; k += kLanes) {
      for (int64_t n = 0; n < kWide<T>; n += kLanes) {
        transpose_square<T, kLanes>([&](int i) SPARSENN_INLINED { return rows[n + i] + k; }, to + k * kFeature<T> + n,
                                    kFeature<T>);
      }
    }
  }
};

// clang-format off
#define SPARSENN_OPS_FOR(NAME, TARGET, BYTES)                                                                          \
  template <class T>                                                                                                   \
  TARGET void forward_##NAME(const StackedLayer& layer, const T* parameters, const T* inputs, T* z) {                  \
    Ops<T, BYTES / sizeof(T)>::forward(layer, parameters, inputs, z);                                                  \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void backward_##NAME(const StackedLayer& layer, const T* inputs, const T* derivatives, T* deltas,             \
                              T* grads) {                                                                              \
    Ops<T, BYTES / sizeof(T)>::backward(layer, inputs, derivatives, deltas, grads);                                    \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void backward_input_##NAME(const StackedLayer& layer, const T* parameters, const T* deltas,                   \
                                    T* inputs) {                                                                       \
    Ops<T, BYTES / sizeof(T)>::backward_input(layer, parameters, deltas, inputs);                                      \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void transpose_##NAME(const T* const* rows, int64_t size, T* to) {                                            \
    Ops<T, BYTES / sizeof(T)>::transpose(rows, size, to);                                                              \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  constexpr Chosen<T> chosen_##NAME{forward_##NAME<T>, backward_##NAME<T>, backward_input_##NAME<T>,                   \
                                    transpose_##NAME<T>};
// clang-format on

// What suits this processor.
template <class T>
struct Chosen {
  void (*forward)(const StackedLayer&, const T*, const T*, T*);
  void (*backward)(const StackedLayer&, const T*, const T*, T*, T*);
  void (*backward_input)(const StackedLayer&, const T*, const T*, T*);
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
        last_(std::max<int64_t>(stack.sets * stack.samples * inputs_ - input_stride_, 0)),
        tail_(2 * input_stride_),
        x_(input_stride_ * kFeature<T>),
        batch_(stack.batch, outputs_),
        next_(stack.batch, outputs_) {
    for (const StackedLayer& layer : layers) signals_.push_back(std::make_unique<Signals<T>>(layer.outputs));
    const T* const x = static_cast<const T*>(stack.x);
    std::copy(x + last_, x + stack.sets * stack.samples * inputs_, static_cast<T*>(tail_));
    for (Batch<T>* batch : {&batch_, &next_}) {
      std::fill_n(static_cast<const T**>(batch->rows), stack.batch * W, static_cast<const T*>(tail_));
    }
    orders_.reserve(count);
    for (int64_t lane = 0; lane < count; ++lane) {
      // Runs of one seed see their samples in one order, which is found once.
      int64_t same = 0;
      while (runs[same]->seed != runs[lane]->seed) ++same;
      order_of_[lane] = same < lane ? order_of_[same] : &orders_.emplace_back(stack, runs[lane]->seed);
      first_[lane] = runs[lane]->data * stack.samples;
      penalty_scales_[lane] = penalty_scale(*runs[lane]);
    }
  }

  void run() {
    copy<true>();
    const int64_t end = stack_.first + stack_.steps;
    find(stack_.first);
    for (int64_t step = stack_.first; step < end; ++step) {
      const int64_t size = size_of(step);
      const T scale = static_cast<T>(stack_.labels ? size : size * outputs_);
      std::swap(batch_, next_);
      if (step + 1 < end) find(step + 1);
      std::fill_n(static_cast<T*>(grads_), stack_.parameters * W, T(0));
      double totals[W] = {};
      for (int64_t begin = 0; begin < size; begin += kSummed)
        train_on(begin, std::min(size, begin + kSummed), scale, totals);
      T penalties[W] = {};
      if (step == stack_.first || kind_.optimizer == Optimizer::adam) set_rates(step);
      update(kind_,
             Update<T>{stack_.parameters * W, weights_, grads_, state_, stack_.parameters * W, &rates_, penalties});
      for (int64_t lane = 0; lane < W; ++lane) {
        losses_[lane] += totals[lane] / static_cast<double>(scale);
        losses_[W + lane] += static_cast<double>(penalties[lane]) * penalty_scales_[lane];
      }
    }
    copy<false>();
  }

 private:
  static constexpr int64_t W = kWide<T>;

  // Gradients and losses of the samples from `begin` to `end` of the batch.
  void train_on(int64_t begin, int64_t end, T scale, double* totals) {
    T sums[W] = {};
    for (; begin < end; begin += kSamples) {
      const int64_t some = std::min<int64_t>(kSamples, end - begin);
      gather(begin, some);
      forward();
      compute_losses(begin, some, scale, sums);
      backward();
    }
    for (int64_t lane = 0; lane < W; ++lane) totals[lane] += static_cast<double>(sums[lane]);
  }

  int64_t size_of(int64_t step) const { return std::min(stack_.batch, stack_.samples - step * stack_.batch); }

  void set_rates(int64_t step) {
    const int64_t batches = (stack_.samples + stack_.batch - 1) / stack_.batch;
    const double t = static_cast<double>(stack_.epoch * batches + step + 1);
    for (int64_t lane = 0; lane < count_; ++lane) rates_.set(lane, StepRates<T>::of(*runs_[lane], t));
  }

  // The runs' parameters, states and losses to lanes, or back.
  template <bool kIn>
  void copy() {
    const int64_t size = stack_.parameters;
    for (int64_t lane = 0; lane < count_; ++lane) {
      const int64_t run = runs_[lane]->index;
      copy_lane<kIn>(static_cast<T*>(stack_.weights) + run * size, static_cast<T*>(weights_) + lane, size);
      copy_lane<kIn>(static_cast<T*>(stack_.state) + run * stack_.rows * size, static_cast<T*>(state_) + lane,
                     rows_ * size);
      copy_lane<kIn>(stack_.losses + 2 * run, losses_ + lane, 2);
    }
  }

  template <bool kIn, class Numbers, class Number>
  static void copy_lane(Numbers* numbers, Number* lanes, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      if constexpr (kIn) {
        lanes[i * W] = numbers[i];
      } else {
        numbers[i] = lanes[i * W];
      }
    }
  }

  // What the step will read, its rows on the way to the cache. Whole vectors are read of them, past their ends; not
  // past that of the last data set, the end of which is copied for it.
  void find(int64_t step) {
    const int64_t size = size_of(step), inputs = inputs_, last = last_;
    const T* const x = static_cast<const T*>(stack_.x);
    const T* const tail = static_cast<const T*>(tail_);
    for (int64_t lane = 0; lane < count_; ++lane) {
      const int32_t* const samples = order_of_[lane]->of_step(step);
      const int64_t first = first_[lane];
      const T** const rows = next_.rows + lane;
      for (int64_t s = 0; s < size; ++s) {
        const int64_t at = (first + samples[s]) * inputs;
        const T* const row = at < last ? x + at : tail + (at - last);
        rows[s * W] = row;
        __builtin_prefetch(row);
        __builtin_prefetch(row + inputs - 1);
      }
      if (stack_.labels) {
        const int64_t* const y = static_cast<const int64_t*>(stack_.y) + first;
        for (int64_t s = 0; s < size; ++s) next_.labels[s * W + lane] = y[samples[s]];
        continue;
      }
      const T* y = static_cast<const T*>(stack_.y) + first * outputs_;
      for (int64_t n = 0; n < outputs_; ++n, ++y) {
        T* to = next_.targets + n * kFeature<T> + lane;
        for (int64_t s = 0; s < size; s += kSamples, to += outputs_ * kFeature<T>) {
          for (int64_t i = 0; i < std::min<int64_t>(kSamples, size - s); ++i) to[i * W] = y[samples[s + i] * outputs_];
        }
      }
    }
  }

  // In the place of samples that are not there stands one that is: its deltas are multiplied by 0, which an
  // infinity of an earlier sample would turn into NaN.
  void gather(int64_t begin, int64_t size) {
    for (int64_t s = 0; s < kSamples; ++s) {
      const int64_t at = begin + (s < size ? s : 0);
      ops_.transpose(batch_.rows + at * W, input_stride_, x_ + s * W);
    }
  }

  void forward() {
    const T* inputs = x_;
    for (size_t n = 0; n < layers_.size(); ++n) {
      Signals<T>& made = *signals_[n];
      ops_.forward(layers_[n], weights_, inputs, made.derivatives);
      activate(n + 1 < layers_.size() ? kind_.activation : kind_.last, made.size, made.derivatives, made.values);
      inputs = made.values;
    }
  }

  // Samples that are not there have no part in the gradients.
  void compute_losses(int64_t begin, int64_t size, T scale, T* sums) {
    Signals<T>& made = *signals_.back();
    if (size < kSamples) std::fill_n(static_cast<T*>(made.deltas), made.size, T(0));
    if (stack_.labels) {
      for (int64_t s = 0; s < size; ++s) {
        const int64_t* const labels = batch_.labels + (begin + s) * W;
        add_losses(
            Losses<T>{outputs_, kFeature<T>, made.values + s * W, nullptr, labels, scale, made.deltas + s * W, sums});
      }
    } else {
      const T* const targets = batch_.targets + begin * outputs_ * W;
      for (int64_t n = 0; n < outputs_; ++n) {
        const int64_t at = n * kFeature<T>;
        add_losses(Losses<T>{size, W, made.values + at, targets + at, nullptr, scale, made.deltas + at, sums});
      }
    }
  }

  void backward() {
    for (size_t n = layers_.size(); n-- > 0;) {
      Signals<T>& made = *signals_[n];
      ops_.backward(layers_[n], n ? signals_[n - 1]->values : x_, made.derivatives, made.deltas, grads_);
      if (n) ops_.backward_input(layers_[n], weights_, made.deltas, signals_[n - 1]->deltas);
    }
  }

  const Stack& stack_;
  const std::vector<StackedLayer>& layers_;
  const StackedRun* const* runs_;
  const int64_t count_;
  const StepKind kind_;
  const Chosen<T>& ops_;
  const int64_t rows_, inputs_, outputs_, input_stride_;
  AlignedBuffer<T> weights_, state_, grads_;
  const int64_t last_;  // where the last numbers of all data sets begin that are copied
  AlignedBuffer<T> tail_, x_;
  Batch<T> batch_, next_;
  std::vector<std::unique_ptr<Signals<T>>> signals_;
  std::vector<Order> orders_;
  Order* order_of_[W];
  int64_t first_[W] = {};  // sample of a run's data set
  double losses_[2 * W] = {}, penalty_scales_[W] = {};
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
