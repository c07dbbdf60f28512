#include "math/hadamard.h"

#include "cpu/block.h"
#include "cpu/deep.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace sparsenn {
namespace {

using cpu::kBlock;

template <class T>
struct Forward {
  T* const* factors;
  T* out;
  int64_t depth, size;
  bool streamed;
};

template <class T>
struct Backward {
  const T* grad;
  T* const* factors;
  T* const* grads;
  int64_t depth, size;
  bool streamed;
};

template <int D, class T>
SPARSENN_INLINE void forward_unrolled(const Forward<T>& block) {
  const T* factors[D];
  for (int d = 0; d < D; ++d) factors[d] = block.factors[d];
  T* const outputs[1] = {block.out};
  cpu::for_each_span(block.size, block.streamed, outputs,
                     [&](int64_t begin, int64_t size, auto& results) SPARSENN_INLINED {
                       T* const out = results[0];
                       SPARSENN_INDEPENDENT
                       for (int64_t i = 0; i < size; ++i) {
                         accumulator_t<T> values[D];
#pragma GCC unroll 8
                         for (int d = 0; d < D; ++d) values[d] = load(factors[d][begin + i]);
                         out[i] = store<T>(product(values));
                       }
                     });
}

template <class T>
SPARSENN_INLINE void forward_deep(const Forward<T>& block) {
  accumulator_t<T> result[kBlock];
  cpu::product_of(result, block.factors, block.depth, block.size);
  for (int64_t i = 0; i < block.size; ++i) block.out[i] = store<T>(result[i]);
}

template <int D, class T>
SPARSENN_INLINE void backward_unrolled(const Backward<T>& block) {
  const T* factors[D];
  T* outputs[D];
  for (int d = 0; d < D; ++d) factors[d] = block.factors[d], outputs[d] = block.grads[d];
  const T* const grad = block.grad;
  cpu::for_each_span(block.size, block.streamed, outputs,
                     [&](int64_t begin, int64_t size, auto& results) SPARSENN_INLINED {
                       T* grads[D];
                       for (int d = 0; d < D; ++d) grads[d] = results[d];
                       SPARSENN_INDEPENDENT
                       for (int64_t i = 0; i < size; ++i) {
                         accumulator_t<T> values[D], others[D];
                         const accumulator_t<T> g = load(grad[begin + i]);
#pragma GCC unroll 8
                         for (int d = 0; d < D; ++d) values[d] = load(factors[d][begin + i]);
                         leave_one_out(values, others);
#pragma GCC unroll 8
                         for (int d = 0; d < D; ++d) grads[d][i] = store<T>(g * others[d]);
                       }
                     });
}

template <class T>
SPARSENN_INLINE void backward_deep(const Backward<T>& block) {
  accumulator_t<T> prefix[kBlock], suffix[kBlock];
  std::fill_n(prefix, block.size, accumulator_t<T>(1));
  for (int64_t d = 0; d < block.depth; ++d) {
    cpu::product_behind(suffix, block.factors, block.depth, d, block.size);
    for (int64_t i = 0; i < block.size; ++i)
      block.grads[d][i] = store<T>(load(block.grad[i]) * (prefix[i] * suffix[i]));
    cpu::multiply<T>(prefix, block.factors[d], block.size);
  }
}

template <class T>
SPARSENN_INLINE void forward_any(const Forward<T>& block) {
  SPARSENN_DISPATCH_DEPTH(block.depth, forward_unrolled<D>(block), forward_deep(block))
}

template <class T>
SPARSENN_INLINE void backward_any(const Backward<T>& block){
    SPARSENN_DISPATCH_DEPTH(block.depth, backward_unrolled<D>(block), backward_deep(block))}

SPARSENN_CLONES void forward(const Forward<double>& block) {
  forward_any(block);
}
SPARSENN_CLONES void forward(const Forward<float>& block) { forward_any(block); }
SPARSENN_CLONES void forward(const Forward<bfloat16>& block) { forward_any(block); }
SPARSENN_CLONES void forward(const Forward<float16>& block) { forward_any(block); }

SPARSENN_CLONES void backward(const Backward<double>& block) { backward_any(block); }
SPARSENN_CLONES void backward(const Backward<float>& block) { backward_any(block); }
SPARSENN_CLONES void backward(const Backward<bfloat16>& block) { backward_any(block); }
SPARSENN_CLONES void backward(const Backward<float16>& block) { backward_any(block); }

}  // namespace

template <>
void hadamard<Cpu>(const TensorView* factors, int64_t depth, const TensorView& out, void*) {
  const cpu::Operands operands(out, {{factors, depth}, {&out, 1}});
  dispatch_dtype(out.dtype, [&](auto element) {
    using T = decltype(element);
    cpu::for_each_block(&out, 1, [&] {
      return [&, block = cpu::Scratch<T>(depth + 1)](int64_t, int64_t begin, int64_t size) mutable {
        operands.read(factors, depth, begin, size, block, 0);
        operands.place(&out, 1, begin, size, block, depth);
        forward(Forward<T>{block.pointers.data(), block.pointers[depth], depth, size, operands.streamed()});
        operands.write(&out, 1, begin, size, block, depth);
      };
    });
  });
}

template <>
void hadamard_backward<Cpu>(const TensorView& grad, const TensorView* factors, int64_t depth, const TensorView* grads,
                            void*) {
  const cpu::Operands operands(factors[0], {{&grad, 1}, {factors, depth}, {grads, depth}});
  dispatch_dtype(grad.dtype, [&](auto element) {
    using T = decltype(element);
    cpu::for_each_block(&grad, 1, [&] {
      return [&, block = cpu::Scratch<T>(2 * depth + 1)](int64_t, int64_t begin, int64_t size) mutable {
        operands.read(factors, depth, begin, size, block, 0);
        operands.place(grads, depth, begin, size, block, depth);
        operands.read(&grad, 1, begin, size, block, 2 * depth);
        T** const pointers = block.pointers.data();
        backward(Backward<T>{pointers[2 * depth], pointers, pointers + depth, depth, size, operands.streamed()});
        operands.write(grads, depth, begin, size, block, depth);
      };
    });
  });
}

}  // namespace sparsenn
