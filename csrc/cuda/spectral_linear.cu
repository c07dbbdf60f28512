// What is around the vendor's products.
#include "cuda/launch.cuh"
#include "cuda/row_tiles.h"

namespace sparsenn {
namespace {

using cuda::Pack;
using cuda::RowTiles;

// to = from * sign * scale + shift, where there are these of each column.
template <class From, class T, int N>
struct ScaleColumns {
  using A = accumulator_t<T>;
  static constexpr int kPhases = 1;
  struct Shared {};

  const From* from;
  const T *scale, *shift;
  T* to;
  A sign;
  RowTiles<N> matrix;
  int64_t blocks = matrix.blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t block, int thread, Shared&) const {
    const int64_t column = matrix.column(block, thread);
    if (column >= matrix.columns) return;
    A factors[N], addends[N];
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      factors[i] = scale ? sign * load(scale[column + i]) : A(1);
      addends[i] = shift ? load(shift[column + i]) : A(-0.0);  // which changes nothing that it is added to
    }
    matrix.for_each_row(block, thread, column, [&](int64_t, int64_t at) {
      const Pack<From, N> x = cuda::read<N>(from + at);
      Pack<T, N> y;
      SPARSENN_UNROLL
      for (int i = 0; i < N; ++i) y.values[i] = store<T>(load(x.values[i]) * factors[i] + addends[i]);
      cuda::write(to + at, y);
    });
  }
};

template <int N, class From, class T>
void scale_by_tiles(const From* from, const T* scale, double sign, const T* shift, int64_t rows, int64_t columns, T* to,
                    void* stream) {
  using A = accumulator_t<T>;
  const RowTiles<N> matrix(rows, columns);
  cuda::launch_phases(ScaleColumns<From, T, N>{from, scale, shift, to, static_cast<A>(sign), matrix}, stream);
}

template <class From, class T>
void scale_typed(const void* input, const void* scale, double sign, const void* shift, int64_t rows, int64_t columns,
                 void* output, void* stream) {
  const auto* const from = static_cast<const From*>(input);
  const auto *const by = static_cast<const T*>(scale), *const plus = static_cast<const T*>(shift);
  auto* const to = static_cast<T*>(output);
  if (cuda::takes_vectors<T>(columns, {input, output})) {
    scale_by_tiles<cuda::kTileVector<T>>(from, by, sign, plus, rows, columns, to, stream);
  } else {
    scale_by_tiles<1>(from, by, sign, plus, rows, columns, to, stream);
  }
}

}  // namespace

void scale_columns(DType input_dtype, const void* input, const void* scale, double sign, const void* shift,
                   int64_t rows, int64_t columns, DType dtype, void* output, void* stream) {
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    if (input_dtype == dtype) {
      scale_typed<T, T>(input, scale, sign, shift, rows, columns, output, stream);
    } else {
      scale_typed<accumulator_t<T>, T>(input, scale, sign, shift, rows, columns, output, stream);
    }
  });
}

}  // namespace sparsenn
