// Rows of a spectral weight, and what the gradient of a row becomes.
#pragma once

#include <vector>

#include "cpu/simd.h"
#include "cpu/tiles.h"
#include "launchers.h"
#include "math/spectral.h"

namespace sparsenn::cpu {

// The spectrum with its element type; lambda_in as the accumulator has it, once for each entry of a row.
template <class T>
struct Eigen {
  using A = accumulator_t<T>;

  explicit Eigen(const Spectrum& spectrum)
      : phi(static_cast<const T*>(spectrum.phi)),
        lambda_out(static_cast<const T*>(spectrum.lambda_out)),
        rows(spectrum.out),
        columns(spectrum.in * spectrum.kernel) {
    const T* lambda_in = static_cast<const T*>(spectrum.lambda_in);
    if (!lambda_in) return;
    starts.reserve(columns + kPartials<A>);
    for (int64_t i = 0; i < spectrum.in; ++i) starts.insert(starts.end(), spectrum.kernel, load(lambda_in[i]));
    starts.resize(columns + kPartials<A>);  // whole vectors are read
  }

  const T* row(int64_t o) const { return phi + o * columns; }
  // A row from column `i` on, which need not be there, for a tile to fetch.
  Ahead ahead(int64_t o, int64_t i) const {
    constexpr int64_t kBytes = sizeof(T);
    return {reinterpret_cast<uintptr_t>(phi) + (o * columns + i) * kBytes, columns * kBytes, kBytes};
  }
  const A* start() const { return starts.empty() ? nullptr : starts.data(); }
  A end(int64_t o) const { return lambda_out ? load(lambda_out[o]) : A(0); }

  const T *phi, *lambda_out;
  int64_t rows, columns;
  std::vector<A> starts;
};

// weight = (start - end) phi for a part of a row; start is null where lambda_in is absent. To: T or its accumulator.
template <class T, class To>
struct Compose {
  const T* phi;
  const accumulator_t<T>* start;
  accumulator_t<T> end;
  int64_t size;
  To* weight;
};

void compose(const Compose<double, double>& row);
void compose(const Compose<float, float>& row);
void compose(const Compose<bfloat16, bfloat16>& row);
void compose(const Compose<float16, float16>& row);
void compose(const Compose<bfloat16, float>& row);
void compose(const Compose<float16, float>& row);

// A number's type becomes another, one of which is the other's accumulator.
template <class From, class To>
void convert(const From* from, int64_t size, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::copy_n(from, size, to);
  } else {
    SPARSENN_INDEPENDENT
    for (int64_t i = 0; i < size; ++i) to[i] = store<To>(load(from[i]));
  }
}

// `count` rows of `size` numbers as the accumulator has them, with zeros around them up to `rows` rows of `padded`.
template <class T, class A>
void copy_padded(const T* from, int64_t stride, int64_t count, int64_t size, A* to, int64_t rows, int64_t padded) {
  for (int64_t r = 0; r < count; ++r, to += padded) {
    convert(from + r * stride, size, to);
    std::fill(to + size, to + padded, A(0));
  }
  std::fill_n(to, (rows - count) * padded, A(0));
}

// `Pull` for a part of a row as it lies in memory; what is not wanted is null.
template <class T, class G>
void pull(const G* grad, const T* phi, const accumulator_t<T>* starts, accumulator_t<T> end, int64_t size, T* phi_grad,
          accumulator_t<T>* columns, accumulator_t<T>* partials) {
  using A = accumulator_t<T>;
  constexpr int64_t kPiece = 512;
  constexpr bool kAsItLies = std::is_same_v<T, A> && std::is_same_v<G, A>;
  A converted[2][kPiece], unwanted[2][kPiece];
  if (starts && !columns) std::fill_n(unwanted[1], kPiece, A(0));
  const int64_t piece = kAsItLies && phi_grad && (columns || !starts) ? size : kPiece;
  for (int64_t k = 0; k < size; k += piece) {
    const int64_t count = std::min(piece, size - k);
    const A *wide_grad = converted[0], *wide_phi = converted[1];
    if constexpr (std::is_same_v<G, A>) {
      wide_grad = grad + k;
    } else {
      copy_padded(grad + k, 0, 1, count, converted[0], 1, count);
    }
    if constexpr (std::is_same_v<T, A>) {
      wide_phi = phi + k;
    } else {
      copy_padded(phi + k, 0, 1, count, converted[1], 1, count);
    }
    A* to = unwanted[0];
    if constexpr (std::is_same_v<T, A>) to = phi_grad ? phi_grad + k : to;
    A spare[kPartials<A>] = {};
    tiles<A>().pull({count, wide_grad, wide_phi, starts ? starts + k : nullptr, end, to,
                     columns ? columns + k : unwanted[1], partials ? partials : spare});
    if constexpr (!std::is_same_v<T, A>) {
      if (phi_grad) convert(to, count, phi_grad + k);
    }
  }
}

// Partial sums added in pairs, in one order.
template <class A>
A total(const A* partials) {
  A sums[kPartials<A>];
  std::copy_n(partials, kPartials<A>, sums);
  for (int64_t half = kPartials<A> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

}  // namespace sparsenn::cpu
