#include "math/balanced_sgd.h"

#include <optional>

#include "cpu/block.h"
#include "cpu/deep.h"
#include "cpu/dispatch.h"
#include "cpu/measures.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace sparsenn {
namespace {

using cpu::kBlock;

// W: the weights and their gradients. Their roots and momenta have the accumulator's type.
template <class W>
struct Step {
  using T = accumulator_t<W>;
  const W* grad;
  W* weight;
  T* root;
  T* momentum;  // null without momentum
  int64_t depth, size;
  bool streamed, plain;
  BalancedSgd<T> rule;
};

// kPlain: no Nesterov momentum, no decay of the weight, no maximizing, as most runs have it.
template <int D, bool kMomentum, bool kPlain, class W>
SPARSENN_INLINE void step_unrolled(const Step<W>& block) {
  using T = accumulator_t<W>;
  const W* const grad = block.grad;
  T* const root = block.root;
  T* const momentum = block.momentum;
  BalancedSgd<T> rule = block.rule;
  rule.kept = D % 2 == 0 ? rule.sign_bit() : 0;  // known here, it costs nothing at odd depths
  if (kPlain) rule.sign = T(1), rule.decays_weight = rule.factor.nesterov = Flag<T>(false);
  W* const outputs[1] = {block.weight};
  cpu::for_each_span(
      block.size, block.streamed, outputs, [&](int64_t begin, int64_t size, auto& results) SPARSENN_INLINED {
        W* const weight = results[0];
        SPARSENN_INDEPENDENT
        for (int64_t i = 0; i < size; ++i) {
          T value = root[begin + i], velocity = kMomentum ? momentum[begin + i] : T(0);
          weight[i] = store<W>(balanced_sgd_step<kMomentum>(load(grad[begin + i]), value, velocity, D, rule));
          root[begin + i] = value;
          if (kMomentum) momentum[begin + i] = velocity;
        }
      });
}

template <class T>
SPARSENN_INLINE void other_factors_of(const T* root, int64_t depth, int64_t size, T* magnitudes, T* others) {
  for (int64_t i = 0; i < size; ++i) magnitudes[i] = others[i] = magnitude(root[i]);
  for (int64_t d = 2; d < depth; ++d) cpu::multiply<T>(others, magnitudes, size);
}

template <bool kMomentum, class W>
SPARSENN_INLINE void step_deep(const Step<W>& block) {
  using T = accumulator_t<W>;
  T magnitudes[kBlock], others[kBlock];
  other_factors_of(block.root, block.depth, block.size, magnitudes, others);
  for (int64_t i = 0; i < block.size; ++i) {
    T velocity = kMomentum ? block.momentum[i] : T(0);
    balanced_sgd_move<kMomentum>(load(block.grad[i]), others[i], block.root[i], velocity, block.rule);
    if (kMomentum) block.momentum[i] = velocity;
  }
  other_factors_of(block.root, block.depth, block.size, magnitudes, others);
  for (int64_t i = 0; i < block.size; ++i) block.weight[i] = store<W>(block.root[i] * others[i]);
}

template <bool kMomentum, class W>
SPARSENN_INLINE void step_with(const Step<W>& block) {
  if (block.plain) {
    SPARSENN_DISPATCH_DEPTH(block.depth, (step_unrolled<D, kMomentum, true>(block)), step_deep<kMomentum>(block))
  } else {
    SPARSENN_DISPATCH_DEPTH(block.depth, (step_unrolled<D, kMomentum, false>(block)), step_deep<kMomentum>(block))
  }
}

template <class W>
SPARSENN_INLINE void step_any(const Step<W>& block) {
  block.momentum ? step_with<true>(block) : step_with<false>(block);
}

SPARSENN_CLONES void step(const Step<double>& block) { step_any(block); }
SPARSENN_CLONES void step(const Step<float>& block) { step_any(block); }
SPARSENN_CLONES void step(const Step<bfloat16>& block) { step_any(block); }
SPARSENN_CLONES void step(const Step<float16>& block) { step_any(block); }

}  // namespace

template <>
void balanced_sgd<Cpu>(const TensorView* weights, const TensorView* roots, const TensorView* momenta,
                       const TensorView* grads, int64_t count, int64_t depth, const FactorizedSgdOptions& options,
                       const Measures& measures, void*) {
  if (count == 0) return;
  const cpu::Measuring measuring(measures, weights, count);
  dispatch_dtype(weights[0].dtype, [&](auto element) {
    using W = decltype(element);
    using T = accumulator_t<W>;
    const BalancedSgd<T> rule(options, options.lr.value, options.lam.value, depth);
    const bool plain = !options.nesterov && !options.maximize && options.weight_decay == 0;
    cpu::for_each_block(weights, count, [&] {
      return [&, operands = std::optional<cpu::Operands>(), current = int64_t{-1}, outer = cpu::Scratch<W>(2),
              inner = cpu::Scratch<T>(2)](int64_t n, int64_t begin, int64_t size) mutable {
        const int64_t moved = momenta ? 1 : 0;
        if (n != current) {
          operands.emplace(weights[n],
                           std::initializer_list<cpu::Operands::Views>{
                               {weights + n, 1}, {grads + n, 1}, {roots + n, 1}, {momenta + n * moved, moved}});
          current = n;
        }
        operands->place(weights + n, 1, begin, size, outer, 0);
        operands->read(grads + n, 1, begin, size, outer, 1);
        operands->read(roots + n, 1, begin, size, inner, 0);
        operands->read(momenta + n * moved, moved, begin, size, inner, 1);
        step(Step<W>{outer.pointers[1], outer.pointers[0], inner.pointers[0], momenta ? inner.pointers[1] : nullptr,
                     depth, size, operands->streamed() && !measuring, plain, rule});
        // The mean of D equal squares is that of one, and one factor is aligned with itself.
        measuring.add(n, begin, size, outer.pointers[0], inner.pointers.data(), 1);
        operands->write(weights + n, 1, begin, size, outer, 0);
        operands->write(roots + n, 1, begin, size, inner, 0);
        operands->write(momenta + n * moved, moved, begin, size, inner, 1);
      };
    });
  });
  measuring.finish();
}

}  // namespace sparsenn
