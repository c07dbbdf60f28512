// Small matrix products that are held in registers, which larger ones are made of.
//
// A sum over k is formed by fused multiply-adds one after the other in `Tile`, and in `Dots` in 16 partial sums (8 in
// float64), of which the upper half is added to the lower until one is left. So its bits depend neither on the tiles'
// sizes nor, therefore, on the processor.
#pragma once

#include <cstdint>

namespace sparsenn::cpu {

constexpr int64_t kDepth = 256;  // how much of a sum a block of rows holds
template <class T>
constexpr int64_t kPartials = 64 / sizeof(T);

// Numbers that are wanted next, `stride` bytes from row to row and `step` from one to the next. An address and no
// pointer: what is fetched beyond the last row is no part of any array, and nothing reads it.
struct Ahead {
  uintptr_t address;
  int64_t stride, step;

  // Where nothing is: numbers that are read anyway.
  template <class T>
  static Ahead none(const T* read) {
    return {reinterpret_cast<uintptr_t>(read), 0, sizeof(T)};
  }
};

// c[m][n] += sum_k a(m, k) b[k][n] for m < rows and n < width, where c has rows of c_stride elements and b of `width`.
// Meanwhile the first `depth` elements of up to kPartials rows ahead are fetched into the second-level cache.
template <class T>
struct Tile {
  using Run = void (*)(int64_t depth, const T* a, const T* b, T* c, int64_t c_stride, const Ahead& ahead);
  int64_t rows;
  Run by_row[2];     // a(m, k) is a[m * kDepth + k]; the width is one vector, or two
  Run by_column[2];  // a(m, k) is a[k * rows + m]
};

// Pieces of a few rows of weights and of the inputs that they meet. The weight in row r is
// w[r][k] = (starts[k] - ends[r]) phi[r * stride + k], composed in registers; starts is null where they are 0, in all
// pieces alike. depth is a multiple of kPartials.
template <class T>
struct Piece {
  int64_t depth;
  const T* phi;
  int64_t stride;
  const T *starts, *ends, *x;
  int64_t x_stride;
};

// sums[r * columns + b] = sum_k w[r][k] x[b * x_stride + k] over two pieces, of which each may have no depth.
template <class T>
struct Dots {
  int64_t rows, columns;
  void (*run)(const Piece<T> (&pieces)[2], T* sums);
};

// A few rows of phi and the gradients of their outputs, for a small batch: everything that they give in one pass over
// them. With w as above and g[r][k] = sum_b grad[b * rows + r] x[b * x_stride + k],
//   x_grad[b * x_stride + k] += grad[b * rows + r] w[r][k]
//   phi_grad[r * phi_grad_stride + k] = (starts[k] - ends[r]) g[r][k]
//   columns[k] += g[r][k] phi[r][k], if there are starts, and the same to partial sum k % kPartials of partials[r]
// for r and b in ascending order and k < size. What lies behind, up to a multiple of kPartials, is read and written,
// but adds nothing to the partial sums.
template <class T>
struct Rows {
  int64_t size, batch;
  const T* phi;
  int64_t stride;
  const T *starts, *ends, *grad, *x;
  int64_t x_stride;
  T *x_grad, *phi_grad;
  int64_t phi_grad_stride;
  T *columns, *partials;
};

template <class T>
struct Sweep {
  int64_t rows;
  void (*run)(const Rows<T>& rows);
  void (*run_one)(const Rows<T>& row);
};

// The chain rule for `size` weights of one row, in one pass over their gradient: phi_grad[k] = (starts[k] - end)
// grad[k], which may lie in grad's place, columns[k] += grad[k] phi[k], and the same to partial sum k % kPartials.
// Without starts there are no columns.
template <class T>
struct Pull {
  int64_t size;
  const T *grad, *phi, *starts;
  T end;
  T *phi_grad, *columns, *partials;
};

// to[k * to_stride + n] = from[n * stride + k] for k < depth and n < width, which is one vector, or two.
template <class T>
using Transpose = void (*)(int64_t depth, const T* from, int64_t stride, T* to, int64_t to_stride);

// What suits this processor.
template <class T>
struct Tiles {
  int64_t lanes;  // of a vector register
  int64_t count;
  const Tile<T>* tiles;  // with ascending numbers of rows
  Dots<T> dots[3];       // with descending numbers of columns, the last of which is 1
  Sweep<T> sweep;
  void (*pull)(const Pull<T>& row);
  Transpose<T> transpose[2];

  int64_t rows() const { return tiles[count - 1].rows; }
  int64_t width() const { return 2 * lanes; }

  // The smallest tile with so many rows, at most rows().
  const Tile<T>& with(int64_t rows) const {
    const Tile<T>* tile = tiles;
    while (tile->rows < rows) ++tile;
    return *tile;
  }

  // The one that takes most of so many columns.
  const Dots<T>& dots_for(int64_t columns) const {
    const Dots<T>* found = dots;
    while (found->columns > columns) ++found;
    return *found;
  }

  // The room that `size` columns take in strips of width(), of which the last may be half as wide.
  int64_t padded(int64_t size) const { return (size + lanes - 1) / lanes * lanes; }
};

template <class T>
const Tiles<T>& tiles();

}  // namespace sparsenn::cpu
