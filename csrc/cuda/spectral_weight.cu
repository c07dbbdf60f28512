#include "cuda/launch.cuh"
#include "cuda/row_tiles.h"
#include "math/spectral.h"

namespace sparsenn {
namespace {

using cuda::Pack;
using cuda::RowTiles;
using cuda::tiles;

// What the columns of a thread have of lambda_in.
template <class T, int N>
SPARSENN_INLINE void load_start(const T* lambda_in, int64_t column, int64_t kernel, accumulator_t<T> (&start)[N]) {
  SPARSENN_UNROLL
  for (int i = 0; i < N; ++i) start[i] = load(lambda_in[kernel == 1 ? column + i : (column + i) / kernel]);
}

template <class T, int N, bool kIn, bool kOut>
struct ComposeWeight {
  using A = accumulator_t<T>;
  static constexpr int kPhases = 1;
  struct Shared {};

  const T *phi, *lambda_in, *lambda_out;
  T* weight;
  int64_t kernel;
  RowTiles<N> matrix;
  int64_t blocks = matrix.blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t block, int thread, Shared&) const {
    const int64_t column = matrix.column(block, thread);
    if (column >= matrix.columns) return;
    A start[N];
    if constexpr (kIn) load_start(lambda_in, column, kernel, start);
    matrix.for_each_row(block, thread, column, [&](int64_t row, int64_t at) {
      Pack<T, N> own = cuda::read<N>(phi + at);
      A end(0);
      if constexpr (kOut) end = load(lambda_out[row]);
      SPARSENN_UNROLL
      for (int i = 0; i < N; ++i) {
        A scale;
        if constexpr (kIn && kOut) {
          scale = spectral_scale<A>(start[i], end);
        } else if constexpr (kIn) {
          scale = start[i];
        } else {
          scale = -end;
        }
        own.values[i] = store<T>(scale * load(own.values[i]));
      }
      cuda::write(weight + at, own);
    });
  }
};

template <class T, int N>
void compose(const Spectrum& spectrum, void* weight, void* stream) {
  const RowTiles<N> matrix(spectrum.out, spectrum.in * spectrum.kernel);
  const T *const phi = static_cast<const T*>(spectrum.phi), *const in = static_cast<const T*>(spectrum.lambda_in),
                 *const out = static_cast<const T*>(spectrum.lambda_out);
  T* const to = static_cast<T*>(weight);
  if (in && out) {
    cuda::launch_phases(ComposeWeight<T, N, true, true>{phi, in, out, to, spectrum.kernel, matrix}, stream);
  } else if (in) {
    cuda::launch_phases(ComposeWeight<T, N, true, false>{phi, in, out, to, spectrum.kernel, matrix}, stream);
  } else {
    cuda::launch_phases(ComposeWeight<T, N, false, true>{phi, in, out, to, spectrum.kernel, matrix}, stream);
  }
}

// One pass over the gradient of the weight, which is that of phi afterwards, in tiles: each leaves the sums of its
// columns and of its rows, which are added up in a fixed order. N columns at a time.
template <class T, int N>
struct TakeApart {
  using A = accumulator_t<T>;
  using Tiles = RowTiles<N>;
  static constexpr int kPhases = 2, kLanes = Tiles::kLanes, kGroups = Tiles::kGroups, kRows = Tiles::kRows,
                       kColumns = Tiles::kColumns;

  // One more than the lanes: the threads that add up rows then read different banks.
  struct Shared {
    A columns[kGroups][kColumns], rows[kRows][kLanes + 1];
  };

  const T *grad, *phi, *lambda_in, *lambda_out;
  T* phi_grad;
  A *column_sums, *row_sums;
  int64_t kernel;
  Tiles matrix;
  int64_t blocks = matrix.blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t block, int thread, Shared& shared) const {
    if constexpr (P == 0) {
      visit(matrix.first_row(block), matrix.column(block, thread), thread % kLanes, thread / kLanes, shared);
    } else {
      add_up(matrix.first_row(block), matrix.first_column(block), thread, shared);
    }
  }

 private:
  SPARSENN_INLINE void visit(int64_t row0, int64_t column, int lane, int group, Shared& shared) const {
    const bool inside = column < matrix.columns;
    A start[N] = {}, sums[N] = {};
    if (inside && lambda_in) load_start(lambda_in, column, kernel, start);
    SPARSENN_ROLLED
    for (int r = group; r < kRows; r += kGroups) {
      A sum(0);
      if (inside && row0 + r < matrix.rows) {
        const int64_t at = (row0 + r) * matrix.columns + column;
        const A end = lambda_out ? load(lambda_out[row0 + r]) : A(0);
        Pack<T, N> g = cuda::read<N>(grad + at);
        const Pack<T, N> p = cuda::read<N>(phi + at);
        SPARSENN_UNROLL
        for (int i = 0; i < N; ++i) {
          const A pull = load(g.values[i]) * load(p.values[i]);
          sums[i] += pull;
          sum += pull;
          const A scale = lambda_in ? spectral_scale(start[i], end) : -end;
          g.values[i] = store<T>(scale * load(g.values[i]));
        }
        if (phi_grad) cuda::write(phi_grad + at, g);
      }
      shared.rows[r][lane] = sum;
    }
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) shared.columns[group][lane * N + i] = sums[i];
  }

  SPARSENN_INLINE void add_up(int64_t row0, int64_t column0, int thread, const Shared& shared) const {
    if (thread < kColumns && column_sums && column0 + thread < matrix.columns) {
      A sum(0);
      SPARSENN_UNROLL
      for (int g = 0; g < kGroups; ++g) sum += shared.columns[g][thread];
      column_sums[row0 / kRows * matrix.columns + column0 + thread] = sum;
    }
    if (thread < kRows && row_sums && row0 + thread < matrix.rows) {
      A sum(0);
      SPARSENN_UNROLL
      for (int lane = 0; lane < kLanes; ++lane) sum += shared.rows[thread][lane];
      row_sums[column0 / kColumns * matrix.rows + row0 + thread] = sum;
    }
  }
};

// to[n] = sign * the sum of parts[(m * count + n) * kernel + k] over m and k.
template <class T>
struct AddParts {
  using A = accumulator_t<T>;
  static constexpr int kPhases = 1;
  struct Shared {};

  const A* parts;
  T* to;
  A sign;
  int64_t count, kernel, number, blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t block, int thread, Shared&) const {
    const int64_t n = block * cuda::kThreads + thread;
    if (n >= count) return;
    A sum(0);
    for (int64_t m = 0; m < number; ++m) {
      for (int64_t k = 0; k < kernel; ++k) sum += parts[(m * count + n) * kernel + k];
    }
    to[n] = store<T>(sign * sum);
  }
};

// A tile is at least 32 columns wide.
int64_t room_for_columns(const Spectrum& spectrum) {
  return tiles(spectrum.out, RowTiles<1>::kRows) * spectrum.in * spectrum.kernel;
}
int64_t room_for_rows(const Spectrum& spectrum) {
  return tiles(spectrum.in * spectrum.kernel, RowTiles<1>::kColumns) * spectrum.out;
}

template <class T, int N>
void backward_weight(const T* grad, const Spectrum& spectrum, const SpectralGradients& gradients, void* workspace,
                     void* stream) {
  using A = accumulator_t<T>;
  const RowTiles<N> matrix(spectrum.out, spectrum.in * spectrum.kernel);
  A* const column_sums = static_cast<A*>(workspace);
  A* const row_sums = column_sums + room_for_columns(spectrum);
  cuda::launch_phases(
      TakeApart<T, N>{grad, static_cast<const T*>(spectrum.phi), static_cast<const T*>(spectrum.lambda_in),
                      static_cast<const T*>(spectrum.lambda_out), static_cast<T*>(gradients.phi),
                      gradients.lambda_in ? column_sums : nullptr, gradients.lambda_out ? row_sums : nullptr,
                      spectrum.kernel, matrix},
      stream);
  if (gradients.lambda_in) {
    cuda::launch_phases(AddParts<T>{column_sums, static_cast<T*>(gradients.lambda_in), A(1), spectrum.in,
                                    spectrum.kernel, matrix.row_tiles(), tiles(spectrum.in, cuda::kThreads)},
                        stream);
  }
  if (gradients.lambda_out) {
    cuda::launch_phases(AddParts<T>{row_sums, static_cast<T*>(gradients.lambda_out), A(-1), spectrum.out, 1,
                                    matrix.column_tiles, tiles(spectrum.out, cuda::kThreads)},
                        stream);
  }
}

}  // namespace

template <>
void spectral_weight<Cuda>(const Spectrum& spectrum, void* weight, void* stream) {
  dispatch_dtype(spectrum.dtype, [&](auto element) {
    using T = decltype(element);
    if (cuda::takes_vectors<T>(spectrum.in * spectrum.kernel, {spectrum.phi, weight})) {
      compose<T, cuda::kTileVector<T>>(spectrum, weight, stream);
    } else {
      compose<T, 1>(spectrum, weight, stream);
    }
  });
}

template <>
int64_t spectral_weight_workspace<Cuda>(const Spectrum& spectrum) {
  const int64_t size = spectrum.dtype == DType::float64 ? 8 : 4;
  return (room_for_columns(spectrum) + room_for_rows(spectrum)) * size;
}

template <>
void spectral_weight_backward<Cuda>(const void* grad, const Spectrum& spectrum, const SpectralGradients& gradients,
                                    void* workspace, void* stream) {
  dispatch_dtype(spectrum.dtype, [&](auto element) {
    using T = decltype(element);
    const T* const from = static_cast<const T*>(grad);
    if (cuda::takes_vectors<T>(spectrum.in * spectrum.kernel, {grad, spectrum.phi, gradients.phi})) {
      backward_weight<T, cuda::kTileVector<T>>(from, spectrum, gradients, workspace, stream);
    } else {
      backward_weight<T, 1>(from, spectrum, gradients, workspace, stream);
    }
  });
}

}  // namespace sparsenn
