// The arithmetic is that of csrc/math, compiled with --fmad=false: in float32 and float64 the bits are the CPU's.
#include "cuda/launch.cuh"
#include "cuda/specialize.h"
#include "math/hadamard.h"

namespace sparsenn {
namespace {

using cuda::Pack;

// Operands: D factors, out.
template <class T, int D>
struct Product {
  static constexpr int kDepth = D, kOperands = D + 1, kWidth = 16 / sizeof(T);

  explicit Product(int64_t) {}
  SPARSENN_INLINE Product prepared() const { return *this; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    Pack<T, N> factors[D], out;
    SPARSENN_UNROLL
    for (int d = 0; d < D; ++d) factors[d] = cuda::read<N>(element.template pointer<T>(d));
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      accumulator_t<T> values[D];
      SPARSENN_UNROLL
      for (int d = 0; d < D; ++d) values[d] = load(factors[d].values[i]);
      out.values[i] = store<T>(product(values));
    }
    cuda::write(element.template pointer<T>(D), out);
  }
};

template <class T>
struct Product<T, 0> {
  static constexpr int kDepth = 0, kOperands = 0, kWidth = 1;
  int depth;

  explicit Product(int64_t depth) : depth(static_cast<int>(depth)) {}
  SPARSENN_INLINE Product prepared() const { return *this; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    accumulator_t<T> result = load(*element.template pointer<T>(0));
    for (int d = 1; d < depth; ++d) result *= load(*element.template pointer<T>(d));
    *element.template pointer<T>(depth) = store<T>(result);
  }
};

// Operands: D gradients, D factors, the product's gradient.
template <class T, int D>
struct Gradients {
  static constexpr int kDepth = D, kOperands = 2 * D + 1, kWidth = 16 / sizeof(T);

  explicit Gradients(int64_t) {}
  SPARSENN_INLINE Gradients prepared() const { return *this; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    Pack<T, N> factors[D];
    const Pack<T, N> grad = cuda::read<N>(element.template pointer<T>(2 * D));
    SPARSENN_UNROLL
    for (int d = 0; d < D; ++d) factors[d] = cuda::read<N>(element.template pointer<T>(D + d));
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      accumulator_t<T> values[D], others[D];
      SPARSENN_UNROLL
      for (int d = 0; d < D; ++d) values[d] = load(factors[d].values[i]);
      leave_one_out(values, others);
      SPARSENN_UNROLL
      for (int d = 0; d < D; ++d) factors[d].values[i] = store<T>(load(grad.values[i]) * others[d]);
    }
    SPARSENN_UNROLL
    for (int d = 0; d < D; ++d) cuda::write(element.template pointer<T>(d), factors[d]);
  }
};

template <class T>
struct Gradients<T, 0> {
  static constexpr int kDepth = 0, kOperands = 0, kWidth = 1;
  int depth;

  explicit Gradients(int64_t depth) : depth(static_cast<int>(depth)) {}
  SPARSENN_INLINE Gradients prepared() const { return *this; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    using Accumulator = accumulator_t<T>;
    const Accumulator grad = load(*element.template pointer<T>(2 * depth));
    Accumulator prefix(1);
    for (int d = 0; d < depth; ++d) {
      Accumulator suffix(1);
      for (int k = depth - 1; k > d; --k) suffix *= load(*element.template pointer<T>(depth + k));
      *element.template pointer<T>(d) = store<T>(grad * (prefix * suffix));
      prefix *= load(*element.template pointer<T>(depth + d));
    }
  }
};

}  // namespace

template <>
void hadamard<Cuda>(const TensorView* factors, int64_t depth, const TensorView& out, void* stream) {
  std::vector<const TensorView*> operands;
  for (int64_t d = 0; d < depth; ++d) operands.push_back(factors + d);
  operands.push_back(&out);
  dispatch_dtype(out.dtype, [&](auto element) {
    cuda::dispatch_depth(depth, [&](auto unrolled) {
      const Product<decltype(element), unrolled> op(depth);
      const Product<decltype(element), 0> deep(depth);
      cuda::run(cuda::operation<true>("hadamard", op, deep), operands, depth + 1, depth, stream);
    });
  });
}

template <>
void hadamard_backward<Cuda>(const TensorView& grad, const TensorView* factors, int64_t depth, const TensorView* grads,
                             void* stream) {
  std::vector<const TensorView*> operands;
  for (int64_t d = 0; d < depth; ++d) operands.push_back(grads + d);
  for (int64_t d = 0; d < depth; ++d) operands.push_back(factors + d);
  operands.push_back(&grad);
  dispatch_dtype(grad.dtype, [&](auto element) {
    cuda::dispatch_depth(depth, [&](auto unrolled) {
      const Gradients<decltype(element), unrolled> op(depth);
      const Gradients<decltype(element), 0> deep(depth);
      cuda::run(cuda::operation<true>("hadamard_backward", op, deep), operands, 2 * depth + 1, 0, stream);
    });
  });
}

}  // namespace sparsenn
