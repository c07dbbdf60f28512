// Small matrix products that are held in registers, which larger ones are made of.
//
// A sum over k is formed by fused multiply-adds one after the other in `Tile`, and in 16 partial sums (8 in float64) in
// `Dots`: its bits depend neither on the tiles' sizes nor, therefore, on the processor.
#pragma once

#include <cstdint>

namespace sparsenn::cpu {

constexpr int64_t kDepth = 256;       // how much of a sum a block of rows holds
constexpr int64_t kTileSlack = 16;    // elements behind the left operands that may be read: compilers load splats whole
template <class T>
constexpr int64_t kPartials = 64 / sizeof(T);

// c[m][n] += sum_k a(m, k) b[k][n] for m < rows and n < width, where c has rows of c_stride elements and b of `width`.
template <class T>
struct Tile {
  using Run = void (*)(int64_t depth, const T* a, const T* b, T* c, int64_t c_stride);
  int64_t rows;
  Run by_row[2];    // a(m, k) is a[m * kDepth + k]; the width is one vector, or two
  Run by_column[2]; // a(m, k) is a[k * rows + m]
};

// partials[r][b][] += w[r * kDepth + k] * x[b * x_stride + k], k going to partial sum k % kPartials; depth is a multiple
// of that.
template <class T>
struct Dots {
  using Run = void (*)(int64_t depth, const T* w, const T* x, int64_t x_stride, T* partials);
  int64_t rows, columns;
  Run run, single;  // `columns` at a time, or one
};

// What suits this processor.
template <class T>
struct Tiles {
  int64_t lanes;  // of a vector register
  int64_t count;
  const Tile<T>* tiles;  // with ascending numbers of rows
  Dots<T> dots;

  int64_t rows() const { return tiles[count - 1].rows; }
  int64_t width() const { return 2 * lanes; }

  // The smallest tile with so many rows, at most rows().
  const Tile<T>& with(int64_t rows) const {
    const Tile<T>* tile = tiles;
    while (tile->rows < rows) ++tile;
    return *tile;
  }

  // The room that `size` columns take in strips of width(), of which the last may be half as wide.
  int64_t padded(int64_t size) const { return (size + lanes - 1) / lanes * lanes; }
};

template <class T>
const Tiles<T>& tiles();

}  // namespace sparsenn::cpu
