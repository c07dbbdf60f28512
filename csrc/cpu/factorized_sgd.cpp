#include "math/factorized_sgd.h"

#include "cpu/block.h"
#include "cpu/deep.h"
#include "cpu/dispatch.h"
#include "cpu/measures.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace sparsenn {
namespace {

// W: the weights and their gradients. Their factors and momenta have the accumulator's type.
template <class W>
struct Step {
  const W* grad;
  W* weight;
  accumulator_t<W>* const* factors;
  accumulator_t<W>* const* momenta;  // null without momentum
  int64_t depth, size;
  bool streamed;
  FactorizedSgd<accumulator_t<W>> rule;
};

template <int D, bool kMomentum, class W>
SPARSENN_INLINE void step_unrolled(const Step<W>& block) {
  using T = accumulator_t<W>;
  T* factors[D];
  T* momenta[D];
  for (int d = 0; d < D; ++d) factors[d] = block.factors[d], momenta[d] = kMomentum ? block.momenta[d] : nullptr;
  const W* const grad = block.grad;
  const FactorizedSgd<T> rule = block.rule;
  W* const outputs[1] = {block.weight};
  cpu::for_each_span(
      block.size, block.streamed, outputs, [&](int64_t begin, int64_t size, auto& results) SPARSENN_INLINED {
        W* const weight = results[0];
        SPARSENN_INDEPENDENT
        for (int64_t i = 0; i < size; ++i) {
          T values[D], velocities[D];
#pragma GCC unroll 8
          for (int d = 0; d < D; ++d) {
            values[d] = factors[d][begin + i];
            if (kMomentum) velocities[d] = momenta[d][begin + i];
          }
          weight[i] = store<W>(factorized_sgd_step<D, kMomentum>(load(grad[begin + i]), values, velocities, rule));
#pragma GCC unroll 8
          for (int d = 0; d < D; ++d) {
            factors[d][begin + i] = values[d];
            if (kMomentum) momenta[d][begin + i] = velocities[d];
          }
        }
      });
}

template <bool kMomentum, class W>
SPARSENN_INLINE void step_deep(const Step<W>& block) {
  using T = accumulator_t<W>;
  cpu::step_deep(block, [&](int64_t d, int64_t i, T old, T grad) SPARSENN_INLINED {
    T none{};
    return sgd_step<kMomentum>(old, grad, kMomentum ? block.momenta[d][i] : none, block.rule.factor);
  });
}

template <class W>
SPARSENN_INLINE void step_any(const Step<W>& block) {
  if (block.momenta) {
    SPARSENN_DISPATCH_DEPTH(block.depth, (step_unrolled<D, true>(block)), step_deep<true>(block))
  } else {
    SPARSENN_DISPATCH_DEPTH(block.depth, (step_unrolled<D, false>(block)), step_deep<false>(block))
  }
}

SPARSENN_CLONES void step(const Step<double>& block) { step_any(block); }
SPARSENN_CLONES void step(const Step<float>& block) { step_any(block); }
SPARSENN_CLONES void step(const Step<bfloat16>& block) { step_any(block); }
SPARSENN_CLONES void step(const Step<float16>& block) { step_any(block); }

}  // namespace

template <>
void factorized_sgd<Cpu>(const TensorView* weights, const TensorView* factors, const TensorView* momenta,
                         const TensorView* grads, int64_t count, int64_t depth, const FactorizedSgdOptions& options,
                         const Measures& measures, void*) {
  if (count == 0) return;
  std::vector<cpu::Operands> operands;
  operands.reserve(count);
  const int64_t moved = momenta ? depth : 0;
  for (int64_t n = 0; n < count; ++n) {
    operands.push_back(cpu::Operands(
        weights[n], {{weights + n, 1}, {grads + n, 1}, {factors + n * depth, depth}, {momenta + n * moved, moved}}));
  }
  const cpu::Measuring measuring(measures, weights, count);
  dispatch_dtype(weights[0].dtype, [&](auto element) {
    using W = decltype(element);
    using T = accumulator_t<W>;
    const FactorizedSgd<T> rule(options, options.lr.value, options.lam.value, depth);
    cpu::for_each_block(weights, count, [&] {
      return [&, outer = cpu::Scratch<W>(2), inner = cpu::Scratch<T>(2 * depth)](int64_t n, int64_t begin,
                                                                                 int64_t size) mutable {
        const cpu::Operands& weight = operands[n];
        weight.place(weights + n, 1, begin, size, outer, 0);
        weight.read(grads + n, 1, begin, size, outer, 1);
        weight.read(factors + n * depth, depth, begin, size, inner, 0);
        weight.read(momenta + n * moved, moved, begin, size, inner, depth);
        T** const pointers = inner.pointers.data();
        step(Step<W>{outer.pointers[1], outer.pointers[0], pointers, momenta ? pointers + depth : nullptr, depth, size,
                     weight.streamed() && !measuring, rule});
        measuring.add(n, begin, size, outer.pointers[0], pointers, depth);
        weight.write(weights + n, 1, begin, size, outer, 0);
        weight.write(factors + n * depth, depth, begin, size, inner, 0);
        weight.write(momenta + n * moved, moved, begin, size, inner, depth);
      };
    });
  });
  measuring.finish();
}

}  // namespace sparsenn
