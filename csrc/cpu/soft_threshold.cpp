#include "math/soft_threshold.h"

#include "cpu/block.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace sparsenn {
namespace {

template <class X>
struct Block {
  using T = accumulator_t<X>;
  const X *input, *grad;  // without a gradient: the values
  X* out;
  const T* threshold;  // null where all elements have the same
  T shared_threshold;
  int64_t size;
  bool streamed;
};

template <bool kGradient, bool kShared, class X>
SPARSENN_INLINE void threshold_of(const Block<X>& block) {
  using T = accumulator_t<X>;
  const X* const input = block.input;
  const X* const grad = block.grad;
  const T* const own = block.threshold;
  const T shared = block.shared_threshold;
  X* const outputs[1] = {block.out};
  cpu::for_each_span(block.size, block.streamed, outputs,
                     [&](int64_t begin, int64_t size, auto& results) SPARSENN_INLINED {
                       X* const out = results[0];
                       SPARSENN_INDEPENDENT
                       for (int64_t i = 0; i < size; ++i) {
                         const T x = load(input[begin + i]), threshold = kShared ? shared : own[begin + i];
                         if constexpr (kGradient) {
                           out[i] = store<X>(soft_threshold_gradient(load(grad[begin + i]), x, threshold));
                         } else {
                           out[i] = store_thresholded<X>(soft_thresholded(x, threshold));
                         }
                       }
                     });
}

template <bool kGradient, class X>
SPARSENN_INLINE void threshold_any(const Block<X>& block) {
  block.threshold ? threshold_of<kGradient, false>(block) : threshold_of<kGradient, true>(block);
}

SPARSENN_CLONES void threshold(const Block<double>& block) { threshold_any<false>(block); }
SPARSENN_CLONES void threshold(const Block<float>& block) { threshold_any<false>(block); }
SPARSENN_CLONES void threshold(const Block<bfloat16>& block) { threshold_any<false>(block); }
SPARSENN_CLONES void threshold(const Block<float16>& block) { threshold_any<false>(block); }

SPARSENN_CLONES void threshold_backward(const Block<double>& block) { threshold_any<true>(block); }
SPARSENN_CLONES void threshold_backward(const Block<float>& block) { threshold_any<true>(block); }
SPARSENN_CLONES void threshold_backward(const Block<bfloat16>& block) { threshold_any<true>(block); }
SPARSENN_CLONES void threshold_backward(const Block<float16>& block) { threshold_any<true>(block); }

// grad is null for the values.
template <class Kernel>
void run(const TensorView* grad, const TensorView& input, const Threshold& threshold, const TensorView& out,
         const Kernel& kernel) {
  const cpu::Operands operands(out, {{&input, 1}, {&out, 1}, {grad, grad ? 1 : 0}});
  dispatch_dtype(out.dtype, [&](auto element) {
    using X = decltype(element);
    using T = accumulator_t<X>;
    cpu::for_each_block(&out, 1, [&] {
      return [&, scratch = cpu::Scratch<X>(3), thresholds = std::vector<T>()](int64_t, int64_t begin,
                                                                              int64_t size) mutable {
        operands.place(&out, 1, begin, size, scratch, 0);
        operands.read(&input, 1, begin, size, scratch, 1);
        if (grad) operands.read(grad, 1, begin, size, scratch, 2);
        const T* const own =
            threshold.tensor.data ? operands.read_broadcast(threshold.tensor, begin, size, thresholds) : nullptr;
        kernel(Block<X>{scratch.pointers[1], scratch.pointers[2], scratch.pointers[0], own,
                        static_cast<T>(threshold.scalar.value), size, operands.streamed()});
        operands.write(&out, 1, begin, size, scratch, 0);
      };
    });
  });
}

}  // namespace

template <>
void soft_threshold<Cpu>(const TensorView& input, const Threshold& level, const TensorView& out, void*) {
  run(nullptr, input, level, out, [](const auto& block) { threshold(block); });
}

template <>
void soft_threshold_backward<Cpu>(const TensorView& grad, const TensorView& input, const Threshold& level,
                                  const TensorView& out, void*) {
  run(&grad, input, level, out, [](const auto& block) { threshold_backward(block); });
}

}  // namespace sparsenn
