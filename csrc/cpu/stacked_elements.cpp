// The elementwise parts of small networks in training.
#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/stacked.h"

namespace sparsenn::cpu {
namespace {

template <Optimizer kOptimizer, WeightPenalty kPenalty, int D, class T>
SPARSENN_INLINE void update_as(const Update<T>& step) {
  constexpr int kRows = kStateRows<kOptimizer, D>;
  const LaneRates<T> rates = *step.rates;  // a copy, which no store can change
  T sums[kWide<T>];
  std::copy_n(step.penalties, kWide<T>, sums);
  T* const state = step.state;
  const int64_t stride = step.stride, whole = step.size / kWide<T> * kWide<T>;
  for (int64_t i = 0; i < whole; i += kWide<T>) {
    T* const weights = step.weights + i;
    const T* const grads = step.grads + i;
    SPARSENN_INDEPENDENT
    for (int lane = 0; lane < kWide<T>; ++lane) {
      T own[kRows];
      SPARSENN_UNROLL_ALL
      for (int k = 0; k < kRows; ++k) own[k] = state[k * stride + i + lane];
      weights[lane] =
          stacked_step<kOptimizer, kPenalty, D>(weights[lane], grads[lane], own, rates.at(lane), sums[lane]);
      SPARSENN_UNROLL_ALL
      for (int k = 0; k < kRows; ++k) state[k * stride + i + lane] = own[k];
    }
  }
  for (int64_t i = whole; i < step.size; ++i) {
    const int lane = static_cast<int>(i - whole);
    T own[kRows];
    for (int k = 0; k < kRows; ++k) own[k] = state[k * stride + i];
    step.weights[i] =
        stacked_step<kOptimizer, kPenalty, D>(step.weights[i], step.grads[i], own, rates.at(lane), sums[lane]);
    for (int k = 0; k < kRows; ++k) state[k * stride + i] = own[k];
  }
  std::copy_n(sums, kWide<T>, step.penalties);
}

template <Optimizer kOptimizer, class T>
SPARSENN_INLINE void update_penalized(WeightPenalty penalty, const Update<T>& step) {
  switch (penalty) {
    case WeightPenalty::none:
      return update_as<kOptimizer, WeightPenalty::none, 1>(step);
    case WeightPenalty::l1:
      return update_as<kOptimizer, WeightPenalty::l1, 1>(step);
    case WeightPenalty::l2:
      return update_as<kOptimizer, WeightPenalty::l2, 1>(step);
  }
}

template <class T>
SPARSENN_INLINE void update_any(const StepKind& kind, const Update<T>& step) {
  constexpr Optimizer kFactorized = Optimizer::factorized;
  switch (kind.optimizer) {
    case Optimizer::sgd:
      return update_penalized<Optimizer::sgd>(kind.penalty, step);
    case Optimizer::adam:
      return update_penalized<Optimizer::adam>(kind.penalty, step);
    case Optimizer::prox:
      return update_as<Optimizer::prox, WeightPenalty::none, 1>(step);
    case Optimizer::factorized:
      SPARSENN_DISPATCH_DEPTH(kind.depth, (update_as<kFactorized, WeightPenalty::none, D>(step)), {})
  }
}

template <Activation kKind, class T>
SPARSENN_INLINE void activate_as(int64_t size, T* z, T* a) {
  SPARSENN_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) {
    T slope;
    a[i] = activation<kKind>(z[i], slope);
    z[i] = slope;
  }
}

template <class T>
SPARSENN_INLINE void activate_any(Activation kind, int64_t size, T* z, T* a) {
  switch (kind) {
    case Activation::identity:
      return activate_as<Activation::identity>(size, z, a);
    case Activation::relu:
      return activate_as<Activation::relu>(size, z, a);
    case Activation::tanh:
      return activate_as<Activation::tanh>(size, z, a);
    case Activation::sigmoid:
      return activate_as<Activation::sigmoid>(size, z, a);
    case Activation::gelu:
      return activate_as<Activation::gelu>(size, z, a);
  }
}

template <class T>
SPARSENN_INLINE void add_squared_errors(const Losses<T>& losses) {
  T sums[kWide<T>];
  std::copy_n(losses.sums, kWide<T>, sums);
  const T twice = 2 / losses.scale;
  for (int64_t n = 0; n < losses.count; ++n) {
    const T* const outputs = losses.outputs + n * losses.stride;
    const T* const targets = losses.targets + n * losses.stride;
    T* const gradients = losses.gradients + n * losses.stride;
    SPARSENN_INDEPENDENT
    for (int lane = 0; lane < kWide<T>; ++lane) {
      const T gap = outputs[lane] - targets[lane];
      sums[lane] = multiply_add(gap, gap, sums[lane]);
      gradients[lane] = gap * twice;
    }
  }
  std::copy_n(sums, kWide<T>, losses.sums);
}

// log(sum_c exp(z_c)) - z_label, with the largest output taken out of the exponents.
template <class T>
SPARSENN_INLINE void add_cross_entropies(const Losses<T>& losses) {
  T most[kWide<T>], total[kWide<T>];
  std::copy_n(losses.outputs, kWide<T>, most);
  std::fill_n(total, kWide<T>, T(0));
  for (int64_t n = 1; n < losses.count; ++n) {
    const T* const outputs = losses.outputs + n * losses.stride;
    SPARSENN_INDEPENDENT
    for (int lane = 0; lane < kWide<T>; ++lane) most[lane] = outputs[lane] > most[lane] ? outputs[lane] : most[lane];
  }
  for (int64_t n = 0; n < losses.count; ++n) {
    const T* const outputs = losses.outputs + n * losses.stride;
    T* const gradients = losses.gradients + n * losses.stride;
    SPARSENN_INDEPENDENT
    for (int lane = 0; lane < kWide<T>; ++lane) {
      gradients[lane] = exponential<Sign::negative>(outputs[lane] - most[lane]);
      total[lane] += gradients[lane];
    }
  }
  const T share = T(1) / losses.scale;
  for (int64_t n = 0; n < losses.count; ++n) {
    T* const gradients = losses.gradients + n * losses.stride;
    SPARSENN_INDEPENDENT
    for (int lane = 0; lane < kWide<T>; ++lane) {
      gradients[lane] = (gradients[lane] / total[lane] - (losses.labels[lane] == n ? T(1) : T(0))) * share;
    }
  }
  for (int lane = 0; lane < kWide<T>; ++lane) {
    const T own = losses.outputs[losses.labels[lane] * losses.stride + lane];
    losses.sums[lane] += logarithm(total[lane]) + most[lane] - own;
  }
}

template <class T>
SPARSENN_INLINE void add_any_losses(const Losses<T>& losses) {
  if (losses.labels) {
    add_cross_entropies(losses);
  } else {
    add_squared_errors(losses);
  }
}

template <class T>
SPARSENN_INLINE void multiply_any(int64_t size, const T* by, T* numbers) {
  SPARSENN_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) numbers[i] *= by[i];
}

}  // namespace

SPARSENN_CLONES void multiply(int64_t size, const float* by, float* numbers) { multiply_any(size, by, numbers); }
SPARSENN_CLONES void multiply(int64_t size, const double* by, double* numbers) { multiply_any(size, by, numbers); }
SPARSENN_CLONES void update(const StepKind& kind, const Update<float>& step) { update_any(kind, step); }
SPARSENN_CLONES void update(const StepKind& kind, const Update<double>& step) { update_any(kind, step); }
SPARSENN_CLONES void activate(Activation kind, int64_t size, float* z, float* a) { activate_any(kind, size, z, a); }
SPARSENN_CLONES void activate(Activation kind, int64_t size, double* z, double* a) { activate_any(kind, size, z, a); }
SPARSENN_CLONES void add_losses(const Losses<float>& losses) { add_any_losses(losses); }
SPARSENN_CLONES void add_losses(const Losses<double>& losses) { add_any_losses(losses); }

// Once through the network for all; the few that come out too large go through it again alone. A piece takes its rounds
// together: one number after the other would wait for each of its products.
SPARSENN_CLONES void samples_of(const Permutation& order, int64_t begin, int64_t count, int32_t* samples) {
  constexpr int32_t kPiece = 128;
  const Permutation own = order;
  if (own.size < 2) {
    std::fill_n(samples, count, 0);
    return;
  }
  uint32_t left[kPiece], right[kPiece];
  for (int64_t done = 0; done < count; done += kPiece) {
    const uint32_t start = static_cast<uint32_t>(begin + done);
    const int32_t size = static_cast<int32_t>(std::min<int64_t>(kPiece, count - done));
    SPARSENN_INDEPENDENT
    for (int32_t i = 0; i < size; ++i) own.split(start + static_cast<uint32_t>(i), left[i], right[i]);
    for (int k = 0; k < Permutation::kRounds; k += 2) {
      SPARSENN_INDEPENDENT
      for (int32_t i = 0; i < size; ++i) own.rounds(k, left[i], right[i]);
    }
    auto* const found = reinterpret_cast<uint32_t*>(samples + done);
    uint32_t most = 0;
    SPARSENN_INDEPENDENT
    for (int32_t i = 0; i < size; ++i) {
      found[i] = left[i] * own.b + right[i];
      most = found[i] > most ? found[i] : most;
    }
    for (int32_t i = 0; most >= own.size && i < size; ++i) {
      while (found[i] >= own.size) found[i] = own.once(found[i]);
    }
  }
}

}  // namespace sparsenn::cpu
