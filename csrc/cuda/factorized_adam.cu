// The arithmetic is that of csrc/math, compiled with --fmad=false: in float32 and float64 the bits are the CPU's, but
// for the powers of the betas.
#include "cuda/launch.cuh"
#include "cuda/measures.h"
#include "cuda/scalar.h"
#include "cuda/specialize.h"
#include "math/factorized_adam.h"

namespace sparsenn {
namespace {

using cuda::Pack;

// The rule as far as the host knows it. What lies on the device is read when the kernel runs: a captured graph follows
// a schedule.
template <class T>
struct Rule {
  FactorizedAdamOptions options;
  int64_t depth;
  FactorizedAdam<T> known;

  Rule(const FactorizedAdamOptions& options, int64_t depth)
      : options(options), depth(depth), known(options, options.lr.value, options.lam.value, depth) {}

  SPARSENN_INLINE Rule prepared() const {
    Rule rule = *this;
    if (options.lr.device || options.lam.device) {
      const FactorizedAdam<T> read(options, cuda::value_of(options.lr), cuda::value_of(options.lam), depth);
      // These alone: the others stay constants, which take no registers.
      rule.known.factor.decay = read.factor.decay;
      rule.known.factor.shrink = read.factor.shrink;
      rule.known.factor.decays = read.factor.decays;
    }
    return rule;
  }
};

// Before the step: one thread for each weight counts it, and writes what corrects it where the weight's word says.
struct Count {
  static constexpr int kDepth = 1, kOperands = 1, kExtras = 1, kWidth = 1;
  FactorizedAdamOptions options;

  SPARSENN_INLINE Count prepared() const { return *this; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    float& taken = *element.template pointer<float>(0);
    taken += 1;
    *reinterpret_cast<AdamCorrection<double>*>(element.word(kOperands)) =
        adam_correction(options, cuda::value_of(options.lr), taken);
  }
};

template <class T, class Element>
SPARSENN_INLINE AdamCorrection<T> correction_of(const Element& element, int operands) {
  return rounded<T>(*reinterpret_cast<const AdamCorrection<double>*>(element.word(operands)));
}

// W: the weights and their gradients; what belongs to a factor has the accumulator's type.
// Operands: weight, gradient, D factors, D means, D squares, D largest squares.
template <class Weight, int D, bool kLargest>
struct Step {
  using W = Weight;
  using T = accumulator_t<W>;
  static constexpr int kDepth = D, kKinds = kLargest ? 4 : 3, kOperands = 2 + kKinds * D, kExtras = 1,
                       kWidth = 16 / sizeof(T);
  static constexpr bool kWouldSpill = sizeof(T) == 8;
  Rule<T> rule;

  SPARSENN_INLINE Step prepared() const { return {rule.prepared()}; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    const AdamCorrection<T> correction = correction_of<T>(element, kOperands);
    Pack<W, N> weight = cuda::read<N>(element.template pointer<W>(1));
    Pack<T, N> state[kKinds][D];
    SPARSENN_UNROLL
    for (int k = 0; k < kKinds; ++k) {
      SPARSENN_UNROLL
      for (int d = 0; d < D; ++d) state[k][d] = cuda::read<N>(element.template pointer<T>(2 + k * D + d));
    }
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      T values[4][D];
      SPARSENN_UNROLL
      for (int k = 0; k < kKinds; ++k) {
        SPARSENN_UNROLL
        for (int d = 0; d < D; ++d) values[k][d] = state[k][d].values[i];
      }
      weight.values[i] = store<W>(factorized_adam_step<D, kLargest>(load(weight.values[i]), values[0], values[1],
                                                                    values[2], values[3], rule.known, correction));
      SPARSENN_UNROLL
      for (int k = 0; k < kKinds; ++k) {
        SPARSENN_UNROLL
        for (int d = 0; d < D; ++d) state[k][d].values[i] = values[k][d];
      }
    }
    cuda::write(element.template pointer<W>(0), weight);
    SPARSENN_UNROLL
    for (int k = 0; k < kKinds; ++k) {
      SPARSENN_UNROLL
      for (int d = 0; d < D; ++d) cuda::write(element.template pointer<T>(2 + k * D + d), state[k][d]);
    }
  }
};

// Any depth: factor d is moved when the prefix of the old factors before it is known and those behind it are still old.
template <class Weight, bool kLargest>
struct Step<Weight, 0, kLargest> {
  using W = Weight;
  using T = accumulator_t<W>;
  static constexpr int kDepth = 0, kOperands = 0, kExtras = 1, kWidth = 1;
  Rule<T> rule;

  SPARSENN_INLINE Step prepared() const { return {rule.prepared()}; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    const int depth = static_cast<int>(rule.depth);
    const AdamCorrection<T> correction = correction_of<T>(element, 2 + (kLargest ? 4 : 3) * depth);
    T prefix(1);
    for (int d = 0; d < depth; ++d) prefix *= *element.template pointer<T>(2 + d);
    const T grad = weight_gradient(load(*element.template pointer<W>(1)), prefix, rule.known);
    T result(1);
    prefix = T(1);
    for (int d = 0; d < depth; ++d) {
      T suffix(1);
      for (int k = depth - 1; k > d; --k) suffix *= *element.template pointer<T>(2 + k);
      T* const factor = element.template pointer<T>(2 + d);
      T* const mean = element.template pointer<T>(2 + depth + d);
      T* const squares = element.template pointer<T>(2 + 2 * depth + d);
      T* const largest = kLargest ? element.template pointer<T>(2 + 3 * depth + d) : squares;
      const T old = *factor;
      T new_mean = *mean, new_squares = *squares, new_largest = *largest;
      const T moved = adam_step<kLargest>(old, grad * (prefix * suffix), new_mean, new_squares, new_largest,
                                          rule.known.factor, correction);
      *factor = moved, *mean = new_mean, *squares = new_squares;
      if constexpr (kLargest) *largest = new_largest;
      result *= moved;
      prefix *= old;
    }
    *element.template pointer<W>(0) = store<W>(result);
  }
};

}  // namespace

template <>
int64_t factorized_adam_workspace<Cuda>(int64_t count) {
  return count * static_cast<int64_t>(sizeof(AdamCorrection<double>));
}

template <>
void factorized_adam<Cuda>(const AdamTensors& tensors, const FactorizedAdamOptions& options, const Measures& measures,
                           void* workspace, void* stream) {
  const auto& [weights, factors, means, squares, largest, steps, grads, count, depth] = tensors;
  if (count == 0) return;
  const TensorView* const state[] = {factors, means, squares, largest};
  const int kinds = largest ? 4 : 3;
  const int64_t operands = 2 + kinds * depth;
  std::vector<const TensorView*> counts, all;
  std::vector<uint64_t> corrections;
  counts.reserve(count), corrections.reserve(count), all.reserve(count * operands);
  for (int64_t n = 0; n < count; ++n) {
    counts.push_back(steps + n);
    corrections.push_back(reinterpret_cast<uintptr_t>(static_cast<AdamCorrection<double>*>(workspace) + n));
    all.push_back(weights + n);
    all.push_back(grads + n);
    for (int k = 0; k < kinds; ++k) {
      for (int64_t d = 0; d < depth; ++d) all.push_back(state[k] + n * depth + d);
    }
  }
  const Count counting{options};
  const cuda::Operation count_steps = cuda::operation<false>("factorized_adam_", counting, counting);
  const int64_t extras = measures.data ? 2 : 1;
  for (int64_t n = 0; n < count; ++n) {  // what will be refused is so before a step is counted
    using Table = cuda::Table<cuda::kSmallTable>;
    if (weights[n].numel == 0 || Table::fits(operands, weights[n].dim, extras)) continue;
    const int64_t dim = cuda::Layout(all.data() + n * operands, operands, weights[n]).dim();
    if (!Table::fits(operands, dim, extras)) cuda::refuse(count_steps, operands, dim);
  }
  cuda::run(count_steps, counts, 1, 0, stream, corrections);
  dispatch_dtype(weights[0].dtype, [&](auto element) {
    using W = decltype(element);
    const Rule<accumulator_t<W>> rule(options, depth);
    if (measures.data) {
      const auto run = [&](auto with_largest) {
        const Step<W, 0, with_largest> op{rule};
        cuda::run_measured("factorized_adam_", op, depth, all, operands, measures, stream, corrections);
      };
      return largest ? run(std::true_type{}) : run(std::false_type{});
    }
    // Deeper ones would hold more in registers than there are.
    cuda::dispatch_depth(depth <= cuda::kMaxSpecialDepth ? depth : 0, [&](auto unrolled) {
      if constexpr (unrolled <= cuda::kMaxSpecialDepth) {
        const auto run = [&](auto with_largest) {
          const Step<W, unrolled, with_largest> op{rule};
          const Step<W, 0, with_largest> deep{rule};
          cuda::run(cuda::operation<false>("factorized_adam_", op, deep), all, operands, 0, stream, corrections);
        };
        largest ? run(std::true_type{}) : run(std::false_type{});
      }
    });
  });
}

}  // namespace sparsenn
