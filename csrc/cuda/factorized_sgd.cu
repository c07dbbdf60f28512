// The arithmetic is that of csrc/math, compiled with --fmad=false: in float32 and float64 the bits are the CPU's.
#include "cuda/factorized_rule.h"
#include "cuda/launch.cuh"
#include "cuda/measures.h"
#include "cuda/specialize.h"
#include "math/factorized_sgd.h"

namespace sparsenn {
namespace {

using cuda::Pack;

template <class T>
using Rule = cuda::FactorizedRule<FactorizedSgd<T>>;

// W: the weights and their gradients; their factors and momenta have the accumulator's type.
// Operands: weight, gradient, D factors, D momenta.
template <class Weight, int D, bool kMomentum>
struct Step {
  using W = Weight;
  using T = accumulator_t<W>;
  static constexpr int kDepth = D, kOperands = 2 + (kMomentum ? 2 * D : D), kWidth = 16 / sizeof(T);
  Rule<T> rule;

  SPARSENN_INLINE Step prepared() const { return {rule.prepared()}; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    Pack<T, N> factors[D], momenta[D];
    Pack<W, N> weight = cuda::read<N>(element.template pointer<W>(1));
    SPARSENN_UNROLL
    for (int d = 0; d < D; ++d) {
      factors[d] = cuda::read<N>(element.template pointer<T>(2 + d));
      if constexpr (kMomentum) momenta[d] = cuda::read<N>(element.template pointer<T>(2 + D + d));
    }
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      T values[D], velocities[D];
      SPARSENN_UNROLL
      for (int d = 0; d < D; ++d) {
        values[d] = factors[d].values[i];
        if constexpr (kMomentum) velocities[d] = momenta[d].values[i];
      }
      weight.values[i] =
          store<W>(factorized_sgd_step<D, kMomentum>(load(weight.values[i]), values, velocities, rule.known));
      SPARSENN_UNROLL
      for (int d = 0; d < D; ++d) {
        factors[d].values[i] = values[d];
        if constexpr (kMomentum) momenta[d].values[i] = velocities[d];
      }
    }
    cuda::write(element.template pointer<W>(0), weight);
    SPARSENN_UNROLL
    for (int d = 0; d < D; ++d) {
      cuda::write(element.template pointer<T>(2 + d), factors[d]);
      if constexpr (kMomentum) cuda::write(element.template pointer<T>(2 + D + d), momenta[d]);
    }
  }
};

// Any depth: factor d is moved when the prefix of the old factors before it is known and those behind it are still old.
template <class Weight, bool kMomentum>
struct Step<Weight, 0, kMomentum> {
  using W = Weight;
  using T = accumulator_t<W>;
  static constexpr int kDepth = 0, kOperands = 0, kWidth = 1;
  Rule<T> rule;

  SPARSENN_INLINE Step prepared() const { return {rule.prepared()}; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    const int depth = static_cast<int>(rule.depth);
    T prefix(1);
    for (int d = 0; d < depth; ++d) prefix *= *element.template pointer<T>(2 + d);
    const T grad = weight_gradient(load(*element.template pointer<W>(1)), prefix, rule.known);
    T result(1);
    prefix = T(1);
    for (int d = 0; d < depth; ++d) {
      T suffix(1);
      for (int k = depth - 1; k > d; --k) suffix *= *element.template pointer<T>(2 + k);
      T* const factor = element.template pointer<T>(2 + d);
      const T old = *factor;
      T momentum(0);
      if constexpr (kMomentum) momentum = *element.template pointer<T>(2 + depth + d);
      const T moved = sgd_step<kMomentum>(old, grad * (prefix * suffix), momentum, rule.known.factor);
      if constexpr (kMomentum) *element.template pointer<T>(2 + depth + d) = momentum;
      *factor = moved;
      result *= moved;
      prefix *= old;
    }
    *element.template pointer<W>(0) = store<W>(result);
  }
};

}  // namespace

template <>
void factorized_sgd<Cuda>(const TensorView* weights, const TensorView* factors, const TensorView* momenta,
                          const TensorView* grads, int64_t count, int64_t depth, const FactorizedSgdOptions& options,
                          const Measures& measures, void* stream) {
  if (count == 0) return;
  const int64_t operands = 2 + (momenta ? 2 : 1) * depth;
  std::vector<const TensorView*> tensors;
  tensors.reserve(count * operands);
  for (int64_t n = 0; n < count; ++n) {
    tensors.push_back(weights + n);
    tensors.push_back(grads + n);
    for (int64_t d = 0; d < depth; ++d) tensors.push_back(factors + n * depth + d);
    for (int64_t d = 0; momenta && d < depth; ++d) tensors.push_back(momenta + n * depth + d);
  }
  dispatch_dtype(weights[0].dtype, [&](auto element) {
    using W = decltype(element);
    const Rule<accumulator_t<W>> rule(options, depth);
    if (measures.data) {
      const auto run = [&](auto with_momentum) {
        const Step<W, 0, with_momentum> op{rule};
        cuda::run_measured("factorized_sgd_", op, depth, tensors, operands, measures, stream);
      };
      return momenta ? run(std::true_type{}) : run(std::false_type{});
    }
    cuda::dispatch_depth(depth, [&](auto unrolled) {
      const auto run = [&](auto with_momentum) {
        const Step<W, unrolled, with_momentum> op{rule};
        const Step<W, 0, with_momentum> deep{rule};
        cuda::run(cuda::operation<false>("factorized_sgd_", op, deep), tensors, operands, 0, stream);
      };
      momenta ? run(std::true_type{}) : run(std::false_type{});
    });
  });
}

}  // namespace sparsenn
