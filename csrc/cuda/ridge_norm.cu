#include "cuda/launch.cuh"
#include "cuda/phases.h"
#include "cuda/sums.h"
#include "math/ridge_norm.h"

namespace sparsenn {
namespace {

using cuda::add_up;
using cuda::Sums;

constexpr int64_t kNumbers = 16 * cuda::kThreads;  // of squares or magnitudes that a block adds up
constexpr int kColumns = 32;                       // side by side, that a block adds up, each by kLines threads
constexpr int kLines = cuda::kThreads / kColumns;

// The norms of the columns of a block: first a thread's part of its column, then its column's parts.
struct ColumnNorms {
  double parts[cuda::kThreads];

  template <class T>
  SPARSENN_INLINE void find(int thread, const T* data, int64_t rows, int64_t columns, int64_t column) {
    double norm = 0;
    if (column < columns) {
      SPARSENN_UNROLL_4
      for (int64_t r = thread / kColumns; r < rows; r += kLines) {
        norm += norm_value(NormKind::magnitudes, load(data[r * columns + column]));
      }
    }
    parts[thread] = norm;
  }

  SPARSENN_INLINE double of(int column) const {
    double norm = 0;
    SPARSENN_UNROLL
    for (int line = 0; line < kLines; ++line) norm += parts[line * kColumns + column];
    return norm;
  }
};

SPARSENN_INLINE int64_t column_of(int64_t block, int thread) { return block * kColumns + thread % kColumns; }

// The sum of a term's part in each block. For columns a block has kColumns of them, else kNumbers numbers.
template <class T>
struct AddTerm {
  static constexpr int kPhases = 4;
  struct Shared {
    ColumnNorms norms;
    Sums sums;
  };

  NormKind kind;
  const T* data;
  int64_t rows, columns;
  double* sums;
  int64_t blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t block, int thread, Shared& shared) const {
    if constexpr (P > 1) {
      add_up<P - 1>(thread, shared.sums, sums + block);
    } else if (kind == NormKind::squared_columns) {
      if constexpr (P == 0) {
        shared.norms.find(thread, data, rows, columns, column_of(block, thread));
      } else {
        const double norm = thread < kColumns ? shared.norms.of(thread) : 0.0;
        shared.sums.threads[thread] = norm_value(NormKind::squares, norm);
      }
    } else if constexpr (P == 0) {
      double sum = 0;
      const int64_t begin = block * kNumbers, end = begin + kNumbers, numel = rows * columns;
      for (int64_t i = begin + thread; i < (end < numel ? end : numel); i += cuda::kThreads) {
        sum += norm_value(kind, load(data[i]));
      }
      shared.sums.threads[thread] = sum;
    }
  }
};

template <class A>
struct AddSums {
  static constexpr int kPhases = 3;
  struct Shared {
    Sums sums;
    double total;
  };

  const double* parts;
  int64_t number;
  A* total;
  int64_t blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t, int thread, Shared& shared) const {
    if constexpr (P == 0) {
      double sum = 0;
      for (int64_t i = thread; i < number; i += cuda::kThreads) sum += parts[i];
      shared.sums.threads[thread] = sum;
    } else {
      add_up<P>(thread, shared.sums, &shared.total);
      if (P == 2 && thread == 0) *total = static_cast<A>(shared.total);
    }
  }
};

template <class T>
struct Slopes {
  using A = accumulator_t<T>;
  static constexpr int kPhases = 2;
  using Shared = ColumnNorms;

  NormKind kind;
  const T* data;
  T* grad;
  const A* scale;
  int64_t rows, columns, blocks;

  template <int P>
  SPARSENN_INLINE void phase(int64_t block, int thread, Shared& shared) const {
    if (kind == NormKind::squared_columns) {
      const int64_t column = column_of(block, thread);
      if constexpr (P == 0) {
        shared.find(thread, data, rows, columns, column);
      } else if (column < columns) {
        const A norm = static_cast<A>(shared.of(thread % kColumns));
        SPARSENN_ROLLED
        for (int64_t r = thread / kColumns; r < rows; r += kLines) {
          const int64_t at = r * columns + column;
          grad[at] = store<T>(column_slope(*scale, norm, load(data[at])));
        }
      }
    } else if constexpr (P == 0) {
      const int64_t begin = block * kNumbers, end = begin + kNumbers, numel = rows * columns;
      for (int64_t i = begin + thread; i < (end < numel ? end : numel); i += cuda::kThreads) {
        grad[i] = store<T>(norm_slope(kind, *scale, load(data[i])));
      }
    }
  }
};

int64_t blocks_of(const NormTerm& term) {
  if (term.rows * term.columns == 0) return 0;
  return term.kind == NormKind::squared_columns ? (term.columns + kColumns - 1) / kColumns
                                                : (term.rows * term.columns + kNumbers - 1) / kNumbers;
}

}  // namespace

template <>
int64_t ridge_norm_workspace<Cuda>(const NormTerm* terms, int64_t count) {
  int64_t blocks = 0;
  for (int64_t n = 0; n < count; ++n) blocks += blocks_of(terms[n]);
  return blocks * static_cast<int64_t>(sizeof(double));
}

template <>
void ridge_norm<Cuda>(DType dtype, const NormTerm* terms, int64_t count, void* total, void* workspace, void* stream) {
  double* const sums = static_cast<double*>(workspace);
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    int64_t done = 0;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t blocks = blocks_of(terms[n]);
      if (blocks == 0) continue;
      cuda::launch_phases(AddTerm<T>{terms[n].kind, static_cast<const T*>(terms[n].data), terms[n].rows,
                                     terms[n].columns, sums + done, blocks},
                          stream);
      done += blocks;
    }
    using A = accumulator_t<T>;
    cuda::launch_phases(AddSums<A>{sums, done, static_cast<A*>(total), 1}, stream);
  });
}

template <>
void ridge_norm_backward<Cuda>(DType dtype, const NormTerm* terms, int64_t count, const void* scale, void* stream) {
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    using A = accumulator_t<T>;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t blocks = blocks_of(terms[n]);
      if (blocks == 0) continue;
      cuda::launch_phases(Slopes<T>{terms[n].kind, static_cast<const T*>(terms[n].data), static_cast<T*>(terms[n].grad),
                                    static_cast<const A*>(scale), terms[n].rows, terms[n].columns, blocks},
                          stream);
    }
  });
}

}  // namespace sparsenn
