#include "math/factorized_adam.h"

#include "cpu/block.h"
#include "cpu/deep.h"
#include "cpu/dispatch.h"
#include "cpu/measures.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace sparsenn {
namespace {

// W: the weights and their gradients. What belongs to a factor has the accumulator's type.
template <class W>
struct Step {
  using T = accumulator_t<W>;
  const W* grad;
  W* weight;
  T *const *factors, *const *means, *const *squares;
  T* const* largest;  // null without AMSGrad
  int64_t depth, size;
  bool streamed;
  FactorizedAdam<T> rule;
  AdamCorrection<T> correction;
};

template <int D, bool kLargest, class W>
SPARSENN_INLINE void step_unrolled(const Step<W>& block) {
  using T = accumulator_t<W>;
  T *factors[D], *means[D], *squares[D], *largest[D];
  for (int d = 0; d < D; ++d) {
    factors[d] = block.factors[d], means[d] = block.means[d], squares[d] = block.squares[d];
    largest[d] = kLargest ? block.largest[d] : nullptr;
  }
  const W* const grad = block.grad;
  const FactorizedAdam<T> rule = block.rule;
  const AdamCorrection<T> correction = block.correction;
  W* const outputs[1] = {block.weight};
  cpu::for_each_span(
      block.size, block.streamed, outputs, [&](int64_t begin, int64_t size, auto& results) SPARSENN_INLINED {
        W* const weight = results[0];
        SPARSENN_INDEPENDENT
        for (int64_t i = 0; i < size; ++i) {
          T values[D], mean[D], square[D], most[D];
#pragma GCC unroll 8
          for (int d = 0; d < D; ++d) {
            values[d] = factors[d][begin + i], mean[d] = means[d][begin + i], square[d] = squares[d][begin + i];
            if (kLargest) most[d] = largest[d][begin + i];
          }
          weight[i] = store<W>(
              factorized_adam_step<D, kLargest>(load(grad[begin + i]), values, mean, square, most, rule, correction));
#pragma GCC unroll 8
          for (int d = 0; d < D; ++d) {
            factors[d][begin + i] = values[d], means[d][begin + i] = mean[d], squares[d][begin + i] = square[d];
            if (kLargest) largest[d][begin + i] = most[d];
          }
        }
      });
}

template <bool kLargest, class W>
SPARSENN_INLINE void step_deep(const Step<W>& block) {
  using T = accumulator_t<W>;
  cpu::step_deep(block, [&](int64_t d, int64_t i, T old, T grad) SPARSENN_INLINED {
    T none{};
    return adam_step<kLargest>(old, grad, block.means[d][i], block.squares[d][i], kLargest ? block.largest[d][i] : none,
                               block.rule.factor, block.correction);
  });
}

template <class W>
SPARSENN_INLINE void step_any(const Step<W>& block) {
  if (block.largest) {
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
int64_t factorized_adam_workspace<Cpu>(int64_t) {
  return 0;
}

template <>
void factorized_adam<Cpu>(const AdamTensors& tensors, const FactorizedAdamOptions& options, const Measures& measures,
                          void*, void*) {
  const auto& [weights, factors, means, squares, largest, steps, grads, count, depth] = tensors;
  std::vector<cpu::Operands> operands;
  std::vector<AdamCorrection<double>> corrections;
  operands.reserve(count), corrections.reserve(count);
  const int64_t kept = largest ? depth : 0;
  for (int64_t n = 0; n < count; ++n) {
    operands.push_back(cpu::Operands(weights[n], {{weights + n, 1},
                                                  {grads + n, 1},
                                                  {factors + n * depth, depth},
                                                  {means + n * depth, depth},
                                                  {squares + n * depth, depth},
                                                  {largest + n * kept, kept}}));
    float& taken = *static_cast<float*>(steps[n].data);
    taken += 1;
    const bool known = n > 0 && taken == *static_cast<const float*>(steps[n - 1].data);
    corrections.push_back(known ? corrections.back() : adam_correction(options, options.lr.value, taken));
  }
  // What belongs to factors, in the order of the scratch's slots.
  const TensorView* const state[] = {factors, means, squares, largest};
  const int kinds = largest ? 4 : 3;
  const cpu::Measuring measuring(measures, weights, count);
  dispatch_dtype(count ? weights[0].dtype : DType::float32, [&](auto element) {
    using W = decltype(element);
    using T = accumulator_t<W>;
    const FactorizedAdam<T> rule(options, options.lr.value, options.lam.value, depth);
    cpu::for_each_block(weights, count, [&] {
      return [&, outer = cpu::Scratch<W>(2), inner = cpu::Scratch<T>(kinds * depth)](int64_t n, int64_t begin,
                                                                                     int64_t size) mutable {
        const cpu::Operands& weight = operands[n];
        weight.place(weights + n, 1, begin, size, outer, 0);
        weight.read(grads + n, 1, begin, size, outer, 1);
        for (int k = 0; k < kinds; ++k) weight.read(state[k] + n * depth, depth, begin, size, inner, k * depth);
        T** const pointers = inner.pointers.data();
        step(Step<W>{outer.pointers[1], outer.pointers[0], pointers, pointers + depth, pointers + 2 * depth,
                     largest ? pointers + 3 * depth : nullptr, depth, size, weight.streamed() && !measuring, rule,
                     rounded<T>(corrections[n])});
        measuring.add(n, begin, size, outer.pointers[0], pointers, depth);
        weight.write(weights + n, 1, begin, size, outer, 0);
        for (int k = 0; k < kinds; ++k) weight.write(state[k] + n * depth, depth, begin, size, inner, k * depth);
      };
    });
  });
  measuring.finish();
}

}  // namespace sparsenn
