#include "math/ridge_norm.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace sparsenn {
namespace {

constexpr int64_t kColumns = 512;      // whose norms are held at a time
constexpr int64_t kNumbers = 1 << 15;  // of the other kinds that are one part

// `rows` rows of `size` numbers; without a gradient: the value.
template <class T>
struct Part {
  NormKind kind;
  const T* data;
  T* grad;
  int64_t rows, size, stride;
  accumulator_t<T> scale;
};

// Partial sums, of which the upper half is added to the lower until one is left: the order does not depend on the
// processor.
template <class Value>
SPARSENN_INLINE double sum_of(int64_t size, const Value& value) {
  constexpr int kLanes = 16;
  double lanes[kLanes] = {};
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    SPARSENN_INDEPENDENT
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += value(i + lane);
  }
  for (int64_t i = whole; i < size; ++i) lanes[i - whole] += value(i);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

template <class T>
SPARSENN_INLINE void column_norms(const Part<T>& part, double* norms) {
  for (int64_t i = 0; i < part.size; ++i) norms[i] = 0;
  for (int64_t r = 0; r < part.rows; ++r) {
    const T* const row = part.data + r * part.stride;
    SPARSENN_INDEPENDENT
    for (int64_t i = 0; i < part.size; ++i) norms[i] += norm_value(NormKind::magnitudes, load(row[i]));
  }
}

template <class T>
SPARSENN_INLINE double value_any(const Part<T>& part) {
  if (part.kind == NormKind::squared_columns) {
    double norms[kColumns];
    column_norms(part, norms);
    return sum_of(part.size, [&](int64_t i) SPARSENN_INLINED { return norm_value(NormKind::squares, norms[i]); });
  }
  const T* const data = part.data;
  if (part.kind == NormKind::squares) {
    return sum_of(part.size, [&](int64_t i) SPARSENN_INLINED { return norm_value(NormKind::squares, load(data[i])); });
  }
  return sum_of(part.size, [&](int64_t i) SPARSENN_INLINED { return norm_value(NormKind::magnitudes, load(data[i])); });
}

template <class T>
SPARSENN_INLINE void slopes_any(const Part<T>& part) {
  using A = accumulator_t<T>;
  const A scale = part.scale;
  if (part.kind == NormKind::squared_columns) {
    double norms[kColumns];
    column_norms(part, norms);
    for (int64_t r = 0; r < part.rows; ++r) {
      const T* const data = part.data + r * part.stride;
      T* const grad = part.grad + r * part.stride;
      SPARSENN_INDEPENDENT
      for (int64_t i = 0; i < part.size; ++i)
        grad[i] = store<T>(column_slope(scale, static_cast<A>(norms[i]), load(data[i])));
    }
    return;
  }
  const T* const data = part.data;
  T* const grad = part.grad;
  if (part.kind == NormKind::squares) {
    SPARSENN_INDEPENDENT
    for (int64_t i = 0; i < part.size; ++i) grad[i] = store<T>(norm_slope(NormKind::squares, scale, load(data[i])));
  } else {
    SPARSENN_INDEPENDENT
    for (int64_t i = 0; i < part.size; ++i) grad[i] = store<T>(norm_slope(NormKind::magnitudes, scale, load(data[i])));
  }
}

SPARSENN_CLONES double value(const Part<double>& part) { return value_any(part); }
SPARSENN_CLONES double value(const Part<float>& part) { return value_any(part); }
SPARSENN_CLONES double value(const Part<bfloat16>& part) { return value_any(part); }
SPARSENN_CLONES double value(const Part<float16>& part) { return value_any(part); }

SPARSENN_CLONES void slopes(const Part<double>& part) { slopes_any(part); }
SPARSENN_CLONES void slopes(const Part<float>& part) { slopes_any(part); }
SPARSENN_CLONES void slopes(const Part<bfloat16>& part) { slopes_any(part); }
SPARSENN_CLONES void slopes(const Part<float16>& part) { slopes_any(part); }

int64_t parts_of(const NormTerm& term) {
  if (term.rows * term.columns == 0) return 0;
  return term.kind == NormKind::squared_columns ? (term.columns + kColumns - 1) / kColumns
                                                : (term.rows * term.columns + kNumbers - 1) / kNumbers;
}

template <class T>
Part<T> part_of(const NormTerm& term, int64_t index, accumulator_t<T> scale) {
  const bool columns = term.kind == NormKind::squared_columns;
  const int64_t all = columns ? term.columns : term.rows * term.columns, step = columns ? kColumns : kNumbers;
  const int64_t begin = index * step, size = std::min(step, all - begin);
  const T* const data = static_cast<const T*>(term.data) + begin;
  T* const grad = term.grad ? static_cast<T*>(term.grad) + begin : nullptr;
  return {term.kind, data, grad, columns ? term.rows : 1, size, term.columns, scale};
}

// Calls body(number, part) for every part of every term, on any thread.
template <class T, class Body>
void for_each_part_of(const NormTerm* terms, int64_t count, accumulator_t<T> scale, const Body& body) {
  std::vector<int64_t> first(count + 1, 0);
  for (int64_t n = 0; n < count; ++n) first[n + 1] = first[n] + parts_of(terms[n]);
  cpu::for_each_part(first[count], 4, [&](int64_t begin, int64_t end) {
    int64_t term = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (int64_t number = begin; number < end; ++number) {
      while (number >= first[term + 1]) ++term;
      body(number, part_of<T>(terms[term], number - first[term], scale));
    }
  });
}

}  // namespace

template <>
int64_t ridge_norm_workspace<Cpu>(const NormTerm* terms, int64_t count) {
  int64_t parts = 0;
  for (int64_t n = 0; n < count; ++n) parts += parts_of(terms[n]);
  return parts * static_cast<int64_t>(sizeof(double));
}

template <>
void ridge_norm<Cpu>(DType dtype, const NormTerm* terms, int64_t count, void* total, void* workspace, void*) {
  double* const sums = static_cast<double*>(workspace);
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    for_each_part_of<T>(terms, count, 0, [&](int64_t number, const Part<T>& part) { sums[number] = value(part); });
    double sum = 0;
    for (int64_t n = 0; n < ridge_norm_workspace<Cpu>(terms, count) / static_cast<int64_t>(sizeof(double)); ++n) {
      sum += sums[n];
    }
    *static_cast<accumulator_t<T>*>(total) = static_cast<accumulator_t<T>>(sum);
  });
}

template <>
void ridge_norm_backward<Cpu>(DType dtype, const NormTerm* terms, int64_t count, const void* scale, void*) {
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const auto factor = *static_cast<const accumulator_t<T>*>(scale);
    for_each_part_of<T>(terms, count, factor, [](int64_t, const Part<T>& part) { slopes(part); });
  });
}

}  // namespace sparsenn
