#include "cuda/launch.cuh"
#include "cuda/phases.h"
#include "math/spectral.h"

namespace sparsenn {
namespace {

using cuda::Pack;

// Operands: phi, the eigenvalues that there are, the weight.
template <class T, bool kIn, bool kOut>
struct ComposeWeight {
  static constexpr int kDepth = 1, kOperands = 2 + kIn + kOut, kWidth = 16 / sizeof(T);

  SPARSENN_INLINE ComposeWeight prepared() const { return *this; }

  template <int N, class Element>
  SPARSENN_INLINE void apply(const Element& element) const {
    Pack<T, N> phi = cuda::read<N>(element.template pointer<T>(0)), start, end;
    if constexpr (kIn) start = cuda::read<N>(element.template pointer<T>(1));
    if constexpr (kOut) end = cuda::read<N>(element.template pointer<T>(1 + kIn));
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      using A = accumulator_t<T>;
      A scale;
      if constexpr (kIn && kOut) {
        scale = spectral_scale<A>(load(start.values[i]), load(end.values[i]));
      } else if constexpr (kIn) {
        scale = load(start.values[i]);
      } else {
        scale = -load(end.values[i]);
      }
      phi.values[i] = store<T>(scale * load(phi.values[i]));
    }
    cuda::write(element.template pointer<T>(1 + kIn + kOut), phi);
  }
};

// One pass over the gradient of the weight, which is that of phi afterwards, in tiles: each leaves the sums of its
// columns and of its rows, which are added up in a fixed order. N columns at a time.
template <class T, int N>
struct TakeApart {
  using A = accumulator_t<T>;
  static constexpr int kPhases = 2, kLanes = 32, kGroups = cuda::kThreads / kLanes, kRows = 64;
  static constexpr int kColumns = kLanes * N;

  // One more than the lanes: the threads that add up rows then read different banks.
  struct Shared {
    A columns[kGroups][kColumns], rows[kRows][kLanes + 1];
  };

  const T *grad, *phi, *lambda_in, *lambda_out;
  T* phi_grad;
  A *column_sums, *row_sums;
  int64_t rows, columns, kernel, column_tiles, blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t block, int thread, Shared& shared) const {
    const int64_t row0 = block / column_tiles * kRows, column0 = block % column_tiles * kColumns;
    if constexpr (P == 0) {
      visit(row0, column0 + thread % kLanes * N, thread % kLanes, thread / kLanes, shared);
    } else {
      add_up(block, row0, column0, thread, shared);
    }
  }

 private:
  SPARSENN_INLINE void visit(int64_t row0, int64_t column, int lane, int group, Shared& shared) const {
    const bool inside = column < columns;
    A start[N], sums[N];
    SPARSENN_UNROLL
    for (int i = 0; i < N; ++i) {
      const int64_t input = kernel == 1 ? column + i : (column + i) / kernel;
      start[i] = inside && lambda_in ? load(lambda_in[input]) : A(0);
      sums[i] = A(0);
    }
    SPARSENN_ROLLED
    for (int r = group; r < kRows; r += kGroups) {
      A sum(0);
      if (inside && row0 + r < rows) {
        const int64_t at = (row0 + r) * columns + column;
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

  SPARSENN_INLINE void add_up(int64_t block, int64_t row0, int64_t column0, int thread, const Shared& shared) const {
    if (thread < kColumns && column_sums && column0 + thread < columns) {
      A sum(0);
      SPARSENN_UNROLL
      for (int g = 0; g < kGroups; ++g) sum += shared.columns[g][thread];
      column_sums[block / column_tiles * columns + column0 + thread] = sum;
    }
    if (thread < kRows && row_sums && row0 + thread < rows) {
      A sum(0);
      SPARSENN_UNROLL
      for (int lane = 0; lane < kLanes; ++lane) sum += shared.rows[thread][lane];
      row_sums[block % column_tiles * rows + row0 + thread] = sum;
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

int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// A tile is at least 32 columns wide.
int64_t room_for_columns(const Spectrum& spectrum) {
  return tiles(spectrum.out, TakeApart<float, 1>::kRows) * spectrum.in * spectrum.kernel;
}
int64_t room_for_rows(const Spectrum& spectrum) {
  return tiles(spectrum.in * spectrum.kernel, TakeApart<float, 1>::kColumns) * spectrum.out;
}

template <class T, int N>
void take_apart(const T* grad, const Spectrum& spectrum, const SpectralGradients& gradients, void* workspace,
                void* stream) {
  using A = accumulator_t<T>;
  using Op = TakeApart<T, N>;
  const int64_t columns = spectrum.in * spectrum.kernel;
  A* const column_sums = static_cast<A*>(workspace);
  A* const row_sums = column_sums + room_for_columns(spectrum);
  const int64_t row_tiles = tiles(spectrum.out, Op::kRows), column_tiles = tiles(columns, Op::kColumns);
  cuda::launch_phases(Op{grad, static_cast<const T*>(spectrum.phi), static_cast<const T*>(spectrum.lambda_in),
                         static_cast<const T*>(spectrum.lambda_out), static_cast<T*>(gradients.phi),
                         gradients.lambda_in ? column_sums : nullptr, gradients.lambda_out ? row_sums : nullptr,
                         spectrum.out, columns, spectrum.kernel, column_tiles, row_tiles * column_tiles},
                      stream);
  if (gradients.lambda_in) {
    cuda::launch_phases(AddParts<T>{column_sums, static_cast<T*>(gradients.lambda_in), A(1), spectrum.in,
                                    spectrum.kernel, row_tiles, tiles(spectrum.in, cuda::kThreads)},
                        stream);
  }
  if (gradients.lambda_out) {
    cuda::launch_phases(AddParts<T>{row_sums, static_cast<T*>(gradients.lambda_out), A(-1), spectrum.out, 1,
                                    column_tiles, tiles(spectrum.out, cuda::kThreads)},
                        stream);
  }
}

template <class T>
bool takes_vectors(int64_t columns, std::initializer_list<const void*> pointers) {
  uintptr_t bits = static_cast<uintptr_t>(columns) * sizeof(T);
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  return bits % 16 == 0;
}

}  // namespace

template <>
void spectral_weight<Cuda>(const Spectrum& spectrum, void* weight, void* stream) {
  const int64_t sizes[3] = {spectrum.out, spectrum.in, spectrum.kernel};
  const int64_t dense[3] = {spectrum.in * spectrum.kernel, spectrum.kernel, 1};
  const int64_t along_in[3] = {0, 1, 0}, along_out[3] = {1, 0, 0};
  const auto view = [&](const void* data, const int64_t* strides) {
    const int64_t numel = spectrum.out * spectrum.in * spectrum.kernel;
    return TensorView{const_cast<void*>(data), spectrum.dtype, numel, 3, sizes, strides};
  };
  const TensorView phi = view(spectrum.phi, dense), start = view(spectrum.lambda_in, along_in),
                   end = view(spectrum.lambda_out, along_out), out = view(weight, dense);
  std::vector<const TensorView*> operands{&phi};
  if (spectrum.lambda_in) operands.push_back(&start);
  if (spectrum.lambda_out) operands.push_back(&end);
  operands.push_back(&out);
  dispatch_dtype(spectrum.dtype, [&](auto element) {
    using T = decltype(element);
    const auto run = [&](const auto& op) {
      cuda::run(cuda::operation<true>("spectral_weight", op, op), operands, operands.size(), 0, stream);
    };
    if (spectrum.lambda_in && spectrum.lambda_out) {
      run(ComposeWeight<T, true, true>{});
    } else if (spectrum.lambda_in) {
      run(ComposeWeight<T, true, false>{});
    } else {
      run(ComposeWeight<T, false, true>{});
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
    constexpr int kVector = 16 / sizeof(T) < 4 ? 16 / sizeof(T) : 4;
    if (takes_vectors<T>(spectrum.in * spectrum.kernel, {grad, spectrum.phi, gradients.phi})) {
      take_apart<T, kVector>(from, spectrum, gradients, workspace, stream);
    } else {
      take_apart<T, 1>(from, spectrum, gradients, workspace, stream);
    }
  });
}

}  // namespace sparsenn
