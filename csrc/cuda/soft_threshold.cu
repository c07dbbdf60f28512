// The arithmetic is that of csrc/math, compiled with --fmad=false: in float32 and float64 the bits are the CPU's.
#include "cuda/launch.cuh"
#include "cuda/scalar.h"
#include "math/soft_threshold.h"

namespace sparsenn {
namespace {

using cuda::Pack;

// X: the input, the gradient and the result. L: the type of the threshold where it is a tensor, or void. Operands: out,
// input, the gradient, the threshold.
template <class X, bool kGradient, class L>
struct SoftThreshold {
  using T = accumulator_t<X>;
  static constexpr bool kTensor = !std::is_void_v<L>;
  static constexpr int kDepth = 1, kOperands = 2 + kGradient + kTensor, kWidth = 16 / sizeof(T);
  Scalar scalar;
  T shared;

  SPARSENN_INLINE SoftThreshold prepared() const { return {scalar, static_cast<T>(cuda::value_of(scalar))}; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    const Pack<X, N> input = cuda::read<N>(element.template pointer<X>(1));
    Pack<X, N> grad, out;
    if constexpr (kGradient) grad = cuda::read<N>(element.template pointer<X>(2));
    Pack<T, N> threshold;
    if constexpr (kTensor) {
      const Pack<L, N> own = cuda::read<N>(element.template pointer<L>(2 + kGradient));
      SPARSENN_UNROLL
      for (int i = 0; i < N; ++i) threshold.values[i] = load(own.values[i]);
    } else {
      SPARSENN_UNROLL
      for (int i = 0; i < N; ++i) threshold.values[i] = shared;
    }
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      const T x = load(input.values[i]);
      if constexpr (kGradient) {
        out.values[i] = store<X>(soft_threshold_gradient(load(grad.values[i]), x, threshold.values[i]));
      } else {
        out.values[i] = store_thresholded<X>(soft_thresholded(x, threshold.values[i]));
      }
    }
    cuda::write(element.template pointer<X>(0), out);
  }
};

// grad is null for the values.
template <bool kGradient>
void run(const char* name, const TensorView* grad, const TensorView& input, const Threshold& threshold,
         const TensorView& out, void* stream) {
  std::vector<const TensorView*> operands{&out, &input};
  if (kGradient) operands.push_back(grad);
  if (threshold.tensor.data) operands.push_back(&threshold.tensor);
  dispatch_dtype(out.dtype, [&](auto element) {
    using X = decltype(element);
    using T = accumulator_t<X>;
    const auto run_with = [&]<class L>(std::type_identity<L>) {
      const SoftThreshold<X, kGradient, L> op{threshold.scalar, T(0)};
      cuda::run(cuda::operation<true>(name, op, op), operands, op.kOperands, 0, stream);
    };
    if (!threshold.tensor.data) return run_with(std::type_identity<void>{});
    if (threshold.tensor.dtype == out.dtype) return run_with(std::type_identity<X>{});
    if constexpr (!std::is_same_v<X, T>) run_with(std::type_identity<T>{});
  });
}

}  // namespace

template <>
void soft_threshold<Cuda>(const TensorView& input, const Threshold& threshold, const TensorView& out, void* stream) {
  run<false>("soft_threshold", nullptr, input, threshold, out, stream);
}

template <>
void soft_threshold_backward<Cuda>(const TensorView& grad, const TensorView& input, const Threshold& threshold,
                                   const TensorView& out, void* stream) {
  run<true>("soft_threshold_backward", &grad, input, threshold, out, stream);
}

}  // namespace sparsenn
