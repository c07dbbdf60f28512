// What is around the vendor's products.
#include "cuda/launch.cuh"

namespace sparsenn {
namespace {

using cuda::Pack;

// Operands: input, the vectors that there are, output.
template <class T, bool kScale, bool kShift>
struct ScaleColumns {
  using A = accumulator_t<T>;
  static constexpr int kDepth = 1, kOperands = 2 + kScale + kShift, kWidth = 16 / sizeof(T);
  A sign;

  SPARSENN_INLINE ScaleColumns prepared() const { return *this; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    Pack<T, N> x = cuda::read<N>(element.template pointer<T>(0)), scale, shift;
    if constexpr (kScale) scale = cuda::read<N>(element.template pointer<T>(1));
    if constexpr (kShift) shift = cuda::read<N>(element.template pointer<T>(1 + kScale));
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      A value = load(x.values[i]);
      if constexpr (kScale) value *= sign * load(scale.values[i]);
      if constexpr (kShift) value += load(shift.values[i]);
      x.values[i] = store<T>(value);
    }
    cuda::write(element.template pointer<T>(1 + kScale + kShift), x);
  }
};

}  // namespace

void scale_columns(DType dtype, const void* input, const void* scale, double sign, const void* shift, int64_t rows,
                   int64_t columns, void* output, void* stream) {
  const int64_t sizes[2] = {rows, columns}, dense[2] = {columns, 1}, along[2] = {0, 1};
  const auto view = [&](const void* data, const int64_t* strides) {
    return TensorView{const_cast<void*>(data), dtype, rows * columns, 2, sizes, strides};
  };
  const TensorView from = view(input, dense), factor = view(scale, along), addend = view(shift, along),
                   to = view(output, dense);
  std::vector<const TensorView*> operands{&from};
  if (scale) operands.push_back(&factor);
  if (shift) operands.push_back(&addend);
  operands.push_back(&to);
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    using A = accumulator_t<T>;
    const auto run = [&](const auto& op) {
      cuda::run(cuda::operation<true>("spectral_linear", op, op), operands, operands.size(), 0, stream);
    };
    const A factor_sign = static_cast<A>(sign);
    if (scale && shift) {
      run(ScaleColumns<T, true, true>{factor_sign});
    } else if (scale) {
      run(ScaleColumns<T, true, false>{factor_sign});
    } else {
      run(ScaleColumns<T, false, true>{factor_sign});
    }
  });
}

}  // namespace sparsenn
