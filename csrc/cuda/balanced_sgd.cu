// The arithmetic is that of csrc/math, compiled with --fmad=false: in float32 and float64 the bits are the CPU's.
#include "cuda/factorized_rule.h"
#include "cuda/launch.cuh"
#include "cuda/measures.h"
#include "math/balanced_sgd.h"

namespace sparsenn {
namespace {

using cuda::Pack;

template <class T>
using Rule = cuda::FactorizedRule<BalancedSgd<T>>;

// W: the weights and their gradients; their roots and momenta have the accumulator's type. The depth is known when the
// kernel runs: memory latency hides the few products more. Operands: weight, gradient, root, momentum.
template <class Weight, bool kMomentum>
struct BalancedStep {
  using W = Weight;
  using T = accumulator_t<W>;
  static constexpr int kDepth = 1, kOperands = 3 + kMomentum, kWidth = 16 / sizeof(T);
  Rule<T> rule;

  SPARSENN_INLINE BalancedStep prepared() const { return {rule.prepared()}; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    Pack<W, N> weight = cuda::read<N>(element.template pointer<W>(1));
    Pack<T, N> root = cuda::read<N>(element.template pointer<T>(2)), momentum{};
    if constexpr (kMomentum) momentum = cuda::read<N>(element.template pointer<T>(3));
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      weight.values[i] = store<W>(balanced_sgd_step<kMomentum>(
          load(weight.values[i]), root.values[i], momentum.values[i], static_cast<int>(rule.depth), rule.known));
    }
    cuda::write(element.template pointer<W>(0), weight);
    cuda::write(element.template pointer<T>(2), root);
    if constexpr (kMomentum) cuda::write(element.template pointer<T>(3), momentum);
  }
};

}  // namespace

template <>
void balanced_sgd<Cuda>(const TensorView* weights, const TensorView* roots, const TensorView* momenta,
                        const TensorView* grads, int64_t count, int64_t depth, const FactorizedSgdOptions& options,
                        const Measures& measures, void* stream) {
  if (count == 0) return;
  const int64_t operands = momenta ? 4 : 3;
  std::vector<const TensorView*> tensors;
  tensors.reserve(count * operands);
  for (int64_t n = 0; n < count; ++n) {
    tensors.insert(tensors.end(), {weights + n, grads + n, roots + n});
    if (momenta) tensors.push_back(momenta + n);
  }
  dispatch_dtype(weights[0].dtype, [&](auto element) {
    using W = decltype(element);
    const Rule<accumulator_t<W>> rule(options, depth);
    const auto run = [&](auto with_momentum) {
      const BalancedStep<W, with_momentum> op{rule};
      if (measures.data) {
        // The mean of D equal squares is that of one, and one factor is aligned with itself.
        cuda::run_measured("balanced_sgd_", op, 1, tensors, operands, measures, stream);
      } else {
        cuda::run(cuda::operation<false>("balanced_sgd_", op, op), tensors, operands, 0, stream);
      }
    };
    momenta ? run(std::true_type{}) : run(std::false_type{});
  });
}

}  // namespace sparsenn
