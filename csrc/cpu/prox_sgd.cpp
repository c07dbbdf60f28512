#include "math/prox_sgd.h"

#include <atomic>
#include <optional>

#include "cpu/block.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace sparsenn {
namespace {

// W: the weights and their gradients. Their momenta and thresholds have the accumulator's type.
template <class W>
struct Step {
  using T = accumulator_t<W>;
  const W* grad;
  W* weight;
  T* momentum;   // null without momentum
  const T* lam;  // null where all elements have the same
  T shared_lam;
  int64_t size;
  ProxSgd<T> rule;
};

enum class Penalty { none, shared, own };

// The number of zeros is counted in lanes as wide as the weight's: a block has too few elements to overflow them.
template <bool kMomentum, Penalty kPenalty, class W>
SPARSENN_INLINE int64_t step_of(const Step<W>& block) {
  using T = accumulator_t<W>;
  using Lane = typename Flag<T>::Bits;
  W* const weight = block.weight;
  T* const momentum = block.momentum;
  const W* const grad = block.grad;
  const T* const lam = block.lam;
  const T shared_lam = block.shared_lam;
  const ProxSgd<T> rule = block.rule;
  Lane zeros = 0;
  SPARSENN_INDEPENDENT
  for (int64_t i = 0; i < block.size; ++i) {
    T velocity = kMomentum ? momentum[i] : T(0);
    const W moved = prox_sgd_step<W, kMomentum>(load(weight[i]), load(grad[i]), velocity, kPenalty != Penalty::none,
                                                kPenalty == Penalty::own ? lam[i] : shared_lam, rule);
    if (kMomentum) momentum[i] = velocity;
    weight[i] = moved;
    zeros += is_zero(moved) ? Lane(1) : Lane(0);
  }
  return static_cast<int64_t>(zeros);
}

template <bool kMomentum, class W>
SPARSENN_INLINE int64_t step_with(const Step<W>& block) {
  if (block.lam) return step_of<kMomentum, Penalty::own>(block);
  if (block.shared_lam != 0) return step_of<kMomentum, Penalty::shared>(block);
  return step_of<kMomentum, Penalty::none>(block);
}

template <class W>
SPARSENN_INLINE int64_t step_any(const Step<W>& block) {
  return block.momentum ? step_with<true>(block) : step_with<false>(block);
}

SPARSENN_CLONES int64_t step(const Step<double>& block) { return step_any(block); }
SPARSENN_CLONES int64_t step(const Step<float>& block) { return step_any(block); }
SPARSENN_CLONES int64_t step(const Step<bfloat16>& block) { return step_any(block); }
SPARSENN_CLONES int64_t step(const Step<float16>& block) { return step_any(block); }

}  // namespace

template <>
void prox_sgd<Cpu>(const TensorView* weights, const TensorView* momenta, const TensorView* grads, const Threshold* lams,
                   const Counts& zeros, int64_t count, const ProxSgdOptions& options, void*) {
  if (count == 0) return;
  for (int64_t n = 0; zeros.data && n < count; ++n) zeros.data[n * zeros.stride] = 0;
  dispatch_dtype(weights[0].dtype, [&](auto element) {
    using W = decltype(element);
    using T = accumulator_t<W>;
    const ProxSgd<T> rule(options, options.lr.value, momenta != nullptr);
    cpu::for_each_block(weights, count, [&] {
      return [&, operands = std::optional<cpu::Operands>(), current = int64_t{-1}, outer = cpu::Scratch<W>(2),
              inner = cpu::Scratch<T>(1),
              thresholds = std::vector<T>()](int64_t n, int64_t begin, int64_t size) mutable {
        if (n != current) {
          operands.emplace(weights[n],
                           std::initializer_list<cpu::Operands::Views>{
                               {weights + n, 1}, {grads + n, 1}, {momenta ? momenta + n : nullptr, momenta ? 1 : 0}});
          current = n;
        }
        operands->read(weights + n, 1, begin, size, outer, 0);
        operands->read(grads + n, 1, begin, size, outer, 1);
        if (momenta) operands->read(momenta + n, 1, begin, size, inner, 0);
        const Threshold& lam = lams[n];
        const T* const own = lam.tensor.data ? operands->read_broadcast(lam.tensor, begin, size, thresholds) : nullptr;
        const int64_t found = step(Step<W>{outer.pointers[1], outer.pointers[0], momenta ? inner.pointers[0] : nullptr,
                                           own, static_cast<T>(lam.scalar.value), size, rule});
        operands->write(weights + n, 1, begin, size, outer, 0);
        if (momenta) operands->write(momenta + n, 1, begin, size, inner, 0);
        // Integers: their sum does not depend on the order in which threads add to it.
        if (zeros.data) std::atomic_ref(zeros.data[n * zeros.stride]).fetch_add(found, std::memory_order_relaxed);
      };
    });
  });
}

}  // namespace sparsenn
