// One small network of dense layers in training: the samples of a batch are in the lanes.
#include "cpu/stacked.h"
#include "cpu/vector.h"

namespace sparsenn::cpu {
namespace {

// What a layer makes of a batch. `by_feature` arrays are (vector, feature, lane), with kWide samples in a vector;
// `by_sample` is (sample, feature), with rows of `stride`, of which the last, past the features, are of no meaning.
template <class T>
struct Features {
  Features(int64_t count, int64_t vectors)
      : count(count),
        stride(padded(count, W)),
        by_sample(vectors * W * stride),
        by_feature(vectors * stride * W),
        derivatives(vectors * stride * W),
        deltas(vectors * stride * W) {}

  static constexpr int64_t W = kWide<T>;
  int64_t count, stride;
  AlignedBuffer<T> by_sample, by_feature, derivatives, deltas;
};

// What suits an instruction set: rows of a tile in the forward product, in the one that hands back, and in that of the
// gradient, which has kColumns vectors of columns.
template <class T, int kLanes, int kForward, int kBack, int kGradient, int kColumns>
struct Products {
  static constexpr int W = kWide<T>, kVectors = W / kLanes;
  using V = vector_t<T, kLanes>;

  template <int kCount>
  static SPARSENN_INLINE void accumulate_row(V (&sums)[kCount], const T* left, const V (&right)[kCount]) {
    if constexpr (kCount == 1) {
      accumulate_splat<kLanes, T>(sums[0], left, right[0]);
    } else {
      V all;
      splat<kLanes>(all, left);
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) accumulate<kLanes, T>(sums[v], all, right[v]);
    }
  }

  // to[m] = derivatives[m] (bias[m] + sum_k w(m, k) from[k]) for kRows rows m of one vector of samples, where w(m, k)
  // is w[m][k], or w[k][m] where it is transposed, in rows of `stride`; bias and derivatives may be null.
  template <int kRows, bool kTransposed>
  static SPARSENN_INLINE void tile(int64_t depth, const T* w, int64_t stride, const T* bias, const T* from,
                                   const T* derivatives, T* to) {
    V sums[kRows][kVectors];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      V start = {};
      if (bias) splat<kLanes>(start, bias + m);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[m][v] = start;
    }
    for (int64_t k = 0; k < depth; ++k) {
      V right[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) read<kLanes>(right[v], from + k * W + v * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        accumulate_row(sums[m], w + (kTransposed ? k * stride + m : m * stride + k), right);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        if (derivatives) {
          V derivative;
          read<kLanes>(derivative, derivatives + m * W + v * kLanes);
          sums[m][v] *= derivative;
        }
        write<kLanes>(to + m * W + v * kLanes, sums[m][v]);
      }
    }
  }

  template <int kRows, bool kTransposed>
  static SPARSENN_INLINE void tiles(int64_t& m, int64_t rows, int64_t depth, const T* w, int64_t stride, const T* bias,
                                    const T* from, const T* derivatives, T* to) {
    for (; m + kRows <= rows; m += kRows) {
      tile<kRows, kTransposed>(depth, w + (kTransposed ? m : m * stride), stride, bias ? bias + m : nullptr, from,
                               derivatives ? derivatives + m * W : nullptr, to + m * W);
    }
    if constexpr (kRows > 1) tiles<kRows / 2, kTransposed>(m, rows, depth, w, stride, bias, from, derivatives, to);
  }

  static SPARSENN_INLINE void forward(int64_t rows, int64_t depth, const T* w, const T* bias, const T* x, T* z) {
    int64_t m = 0;
    tiles<kForward, false>(m, rows, depth, w, depth, bias, x, nullptr, z);
  }

  static SPARSENN_INLINE void backward_input(int64_t rows, int64_t depth, const T* w, const T* from,
                                             const T* derivatives, T* deltas) {
    int64_t i = 0;
    tiles<kBack, true>(i, depth, rows, w, depth, nullptr, from, derivatives, deltas);
  }

  // to[m][i] = sum_s deltas[m][s] x[s][i] over the samples, for kRows outputs m and kSpan vectors of inputs i.
  template <int kRows, int kSpan>
  static SPARSENN_INLINE void gradient_tile(int64_t samples, const T* deltas, int64_t vector_stride, const T* x,
                                            int64_t x_stride, T* to, int64_t stride) {
    V sums[kRows][kSpan] = {};
    for (int64_t first = 0; first < samples; first += W, deltas += vector_stride) {
      const int64_t here = std::min<int64_t>(W, samples - first);
      for (int64_t s = 0; s < here; ++s, x += x_stride) {
        V right[kSpan];
#pragma GCC unroll 4
        for (int v = 0; v < kSpan; ++v) read<kLanes>(right[v], x + v * kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) accumulate_row(sums[m], deltas + m * W + s, right);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kSpan; ++v) write<kLanes>(to + m * stride + v * kLanes, sums[m][v]);
    }
  }

  // Whole vectors are written from the last of a row to the first: what is past the end of a row is overwritten by the
  // next, so that rows follow each other without gaps.
  template <int kRows>
  static SPARSENN_INLINE void gradient_rows(int64_t& m, int64_t rows, int64_t columns, int64_t samples, const T* deltas,
                                            int64_t vector_stride, const T* x, int64_t x_stride, T* to) {
    for (; m + kRows <= rows; m += kRows) {
      const T* const own = deltas + m * W;
      int64_t i = padded(columns, kLanes);
      for (; i % (kColumns * kLanes) != 0; i -= kLanes) {
        const int64_t at = i - kLanes;
        gradient_tile<kRows, 1>(samples, own, vector_stride, x + at, x_stride, to + m * columns + at, columns);
      }
      for (; i > 0; i -= kColumns * kLanes) {
        const int64_t at = i - kColumns * kLanes;
        gradient_tile<kRows, kColumns>(samples, own, vector_stride, x + at, x_stride, to + m * columns + at, columns);
      }
    }
    if constexpr (kRows > 1) {
      gradient_rows<kRows / 2>(m, rows, columns, samples, deltas, vector_stride, x, x_stride, to);
    }
  }

  static SPARSENN_INLINE void gradient(int64_t rows, int64_t columns, int64_t samples, const T* deltas,
                                       int64_t vector_stride, const T* x, int64_t x_stride, T* to) {
    int64_t m = 0;
    gradient_rows<kGradient>(m, rows, columns, samples, deltas, vector_stride, x, x_stride, to);
  }

  // to[n][k] = from[k][n] for a multiple of W of rows and columns.
  static SPARSENN_INLINE void transpose(int64_t rows, int64_t columns, const T* from, int64_t stride, T* to,
                                        int64_t to_stride) {
    for (int64_t n = 0; n < columns; n += kLanes) {
      for (int64_t k = 0; k < rows; k += kLanes) {
        transpose_square<T, kLanes>(from + k * stride + n, stride, to + n * to_stride + k, to_stride);
      }
    }
  }
};

template <class T>
struct Chosen {
  void (*forward)(int64_t, int64_t, const T*, const T*, const T*, T*);
  void (*backward_input)(int64_t, int64_t, const T*, const T*, const T*, T*);
  void (*gradient)(int64_t, int64_t, int64_t, const T*, int64_t, const T*, int64_t, T*);
  void (*transpose)(int64_t, int64_t, const T*, int64_t, T*, int64_t);
};

// clang-format off
#define SPARSENN_PRODUCTS_FOR(NAME, TARGET, BYTES, ...)                                                                \
  template <class T>                                                                                                   \
  using Products_##NAME = Products<T, BYTES / sizeof(T), __VA_ARGS__>;                                                 \
  template <class T>                                                                                                   \
  TARGET void forward_##NAME(int64_t rows, int64_t depth, const T* w, const T* bias, const T* x, T* z) {               \
    Products_##NAME<T>::forward(rows, depth, w, bias, x, z);                                                           \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void backward_input_##NAME(int64_t rows, int64_t depth, const T* w, const T* from, const T* derivatives,      \
                                    T* deltas) {                                                                       \
    Products_##NAME<T>::backward_input(rows, depth, w, from, derivatives, deltas);                                     \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void gradient_##NAME(int64_t rows, int64_t columns, int64_t samples, const T* deltas, int64_t vector_stride,  \
                              const T* x, int64_t x_stride, T* to) {                                                   \
    Products_##NAME<T>::gradient(rows, columns, samples, deltas, vector_stride, x, x_stride, to);                      \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  TARGET void transpose_##NAME(int64_t rows, int64_t columns, const T* from, int64_t stride, T* to,                    \
                               int64_t to_stride) {                                                                    \
    Products_##NAME<T>::transpose(rows, columns, from, stride, to, to_stride);                                         \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  constexpr Chosen<T> chosen_##NAME{forward_##NAME<T>, backward_input_##NAME<T>, gradient_##NAME<T>,                   \
                                    transpose_##NAME<T>};
// clang-format on

SPARSENN_PRODUCTS_FOR(base, , 16, 2, 2, 2, 2)
#if defined(SPARSENN_HAS_CLONES)
SPARSENN_PRODUCTS_FOR(v3, __attribute__((target("arch=x86-64-v3"))), 32, 4, 4, 4, 2)
SPARSENN_PRODUCTS_FOR(v4, __attribute__((target("arch=x86-64-v4"))), 64, 16, 16, 8, 2)
#endif

template <class T>
const Chosen<T>& choose() {
#if defined(SPARSENN_HAS_CLONES)
  if (__builtin_cpu_supports("x86-64-v4")) return chosen_v4<T>;
  if (__builtin_cpu_supports("x86-64-v3")) return chosen_v3<T>;
#endif
  return chosen_base<T>;
}

// Gradients are formed for so many weights at a time, and used while they are in the first-level cache,
constexpr int64_t kGradients = 2048;
// but for a multiple of so many rows: each group of rows reads all samples anew.
constexpr int64_t kGradientRows = 8;

template <class T>
class Dense {
 public:
  Dense(const Stack& stack, const std::vector<StackedLayer>& layers, const StackedRun& run)
      : stack_(stack),
        layers_(layers),
        run_(run),
        kind_(kind_of(run)),
        ops_(choose<T>()),
        weights_(static_cast<T*>(stack.weights) + run.index * stack.parameters),
        state_(static_cast<T*>(stack.state) + run.index * stack.rows * stack.parameters),
        vectors_(padded(stack.batch, W) / W),
        outputs_(layers.back().outputs),
        order_(stack, run.seed),
        targets_(outputs_ * W),
        labels_(W),
        grads_(room_for_gradients(layers)) {
    features_.push_back(std::make_unique<Features<T>>(layers.front().inputs, vectors_));
    for (const StackedLayer& layer : layers) {
      features_.push_back(std::make_unique<Features<T>>(layer.outputs, vectors_));
    }
  }

  void run() {
    const int64_t batches = (stack_.samples + stack_.batch - 1) / stack_.batch;
    for (int64_t step = stack_.first; step < stack_.first + stack_.steps; ++step) {
      const int64_t size = std::min(stack_.batch, stack_.samples - step * stack_.batch);
      const double scale = static_cast<double>(stack_.labels ? size : size * outputs_);
      if (step == stack_.first || kind_.optimizer == Optimizer::adam) {
        const auto own = StepRates<T>::of(run_, static_cast<double>(stack_.epoch * batches + step + 1));
        for (int lane = 0; lane < W; ++lane) rates_.set(lane, own);
      }
      T penalties[W] = {};
      gather(step, size);
      forward(size);
      const double loss = compute_losses(step, size, static_cast<T>(scale));
      if (step + 1 < stack_.first + stack_.steps) prefetch(step + 1);
      backward(size, penalties);
      double penalty = 0;
      for (const T own : penalties) penalty += static_cast<double>(own);
      stack_.losses[2 * run_.index] += loss / scale;
      stack_.losses[2 * run_.index + 1] += penalty * penalty_scale(run_);
    }
  }

 private:
  static constexpr int64_t W = kWide<T>;

  static int64_t room_for_gradients(const std::vector<StackedLayer>& layers) {
    int64_t most = kGradients;
    for (const StackedLayer& layer : layers) most = std::max(most, kGradientRows * padded(layer.inputs, W));
    return 2 * most + W;
  }

  int64_t vectors(int64_t size) const { return padded(size, W) / W; }
  int64_t place(int64_t sample) const { return run_.data * stack_.samples + sample; }
  const T* input(int64_t sample) const {
    return static_cast<const T*>(stack_.x) + place(sample) * layers_.front().inputs;
  }

  // The rows of a step's samples on the way to the cache.
  void prefetch(int64_t step) {
    const int64_t size = std::min(stack_.batch, stack_.samples - step * stack_.batch), width = layers_.front().inputs;
    const int32_t* const own = order_.of_step(step);
    for (int64_t i = 0; i < size; ++i) {
      const T* const row = input(own[i]);
      for (int64_t k = 0; k < width; k += W) __builtin_prefetch(row + k);
      __builtin_prefetch(row + width - 1);
    }
  }

  void gather(int64_t step, int64_t size) {
    Features<T>& x = *features_.front();
    const int32_t* const own = order_.of_step(step);
    for (int64_t i = 0; i < size; ++i) std::copy_n(input(own[i]), x.count, x.by_sample + i * x.stride);
    for (int64_t v = 0; v < vectors(size); ++v) {
      ops_.transpose(W, x.stride, x.by_sample + v * W * x.stride, x.stride, x.by_feature + v * x.stride * W, W);
    }
  }

  void forward(int64_t size) {
    for (size_t n = 0; n < layers_.size(); ++n) {
      const StackedLayer& layer = layers_[n];
      Features<T>&from = *features_[n], &to = *features_[n + 1];
      const bool last = n + 1 == layers_.size();
      for (int64_t v = 0; v < vectors(size); ++v) {
        const int64_t at = v * to.stride * W;
        ops_.forward(to.count, from.count, weights_ + layer.weights, layer.bias ? weights_ + layer.biases : nullptr,
                     from.by_feature + v * from.stride * W, to.derivatives + at);
        activate(last ? kind_.last : kind_.activation, to.count * W, to.derivatives + at, to.by_feature + at);
        if (!last) ops_.transpose(to.stride, W, to.by_feature + at, W, to.by_sample + v * W * to.stride, to.stride);
      }
    }
  }

  // The sum of the samples' losses. Samples that are not there have no part in the gradients.
  double compute_losses(int64_t step, int64_t size, T scale) {
    Features<T>& made = *features_.back();
    const int32_t* const own = order_.of_step(step);
    double total = 0;
    for (int64_t first = 0, at = 0; first < size; first += W, at += made.stride * W) {
      const int64_t here = std::min(W, size - first);
      for (int64_t s = 0; s < here; ++s) {
        const int64_t from = place(own[first + s]);
        if (stack_.labels) {
          labels_[s] = static_cast<const int64_t*>(stack_.y)[from];
        } else {
          const T* const y = static_cast<const T*>(stack_.y) + from * outputs_;
          for (int64_t n = 0; n < outputs_; ++n) targets_[n * W + s] = y[n];
        }
      }
      T sums[W] = {};
      T* const deltas = made.deltas + at;
      add_losses(Losses<T>{outputs_, W, made.by_feature + at, stack_.labels ? nullptr : static_cast<T*>(targets_),
                           stack_.labels ? static_cast<int64_t*>(labels_) : nullptr, scale, deltas, sums});
      for (int64_t s = 0; s < here; ++s) total += static_cast<double>(sums[s]);
      for (int64_t n = 0; n < outputs_; ++n) std::fill(deltas + n * W + here, deltas + (n + 1) * W, T(0));
    }
    return total;
  }

  void backward(int64_t size, T* penalties) {
    for (size_t n = layers_.size(); n-- > 0;) {
      const StackedLayer& layer = layers_[n];
      Features<T>&from = *features_[n], &to = *features_[n + 1];
      for (int64_t v = 0; v < vectors(size); ++v) {
        const int64_t at = v * to.stride * W, source = v * from.stride * W;
        if (n + 1 == layers_.size()) multiply(to.count * W, to.derivatives + at, to.deltas + at);
        if (n) {
          ops_.backward_input(to.count, from.count, weights_ + layer.weights, to.deltas + at, from.derivatives + source,
                              from.deltas + source);
        }
      }
      // Only now, when the old weights have served.
      const int64_t rows = std::max(kGradientRows, kGradients / from.stride / kGradientRows * kGradientRows);
      for (int64_t m = 0; m < to.count; m += rows) {
        const int64_t count = std::min(rows, to.count - m);
        ops_.gradient(count, from.count, size, to.deltas + m * W, to.stride * W, from.by_sample, from.stride, grads_);
        update_from(layer.weights + m * from.count, count * from.count, grads_, penalties);
      }
      if (layer.bias) update_biases(layer, to, size, penalties);
    }
  }

  void update_biases(const StackedLayer& layer, const Features<T>& to, int64_t size, T* penalties) {
    for (int64_t start = 0; start < to.count; start += kGradients) {
      const int64_t count = std::min(kGradients, to.count - start);
      for (int64_t m = 0; m < count; ++m) {
        T sum = 0;
        for (int64_t s = 0; s < size; ++s) sum += to.deltas[(s / W * to.stride + start + m) * W + s % W];
        grads_[m] = sum;
      }
      update_from(layer.biases + start, count, grads_, penalties);
    }
  }

  void update_from(int64_t start, int64_t count, const T* grads, T* penalties) {
    update(kind_, Update<T>{count, weights_ + start, grads, state_ + start, stack_.parameters, &rates_, penalties});
  }

  const Stack& stack_;
  const std::vector<StackedLayer>& layers_;
  const StackedRun& run_;
  const StepKind kind_;
  const Chosen<T>& ops_;
  T *const weights_, *const state_;
  const int64_t vectors_, outputs_;
  Order order_;
  AlignedBuffer<T> targets_;
  AlignedBuffer<int64_t> labels_;
  AlignedBuffer<T> grads_;
  std::vector<std::unique_ptr<Features<T>>> features_;
  LaneRates<T> rates_{};
};

}  // namespace

template <class T>
void train_dense(const Stack& stack, const std::vector<StackedLayer>& layers, const StackedRun& run) {
  Dense<T>(stack, layers, run).run();
}

template void train_dense<float>(const Stack&, const std::vector<StackedLayer>&, const StackedRun&);
template void train_dense<double>(const Stack&, const std::vector<StackedLayer>&, const StackedRun&);

}  // namespace sparsenn::cpu
