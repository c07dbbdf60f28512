// Row-major matrices in tiles, of which a block takes one: a thread has N columns next to each other in every
// kGroups-th of kRows rows, so that what belongs to a column is read once for them.
#pragma once

#include <initializer_list>

#include "cuda/phases.h"

namespace sparsenn::cuda {

SPARSENN_INLINE int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

template <int N>
struct RowTiles {
  static constexpr int kLanes = 32, kGroups = kThreads / kLanes, kRows = 64, kColumns = kLanes * N;

  int64_t rows, columns, column_tiles, blocks;

  RowTiles(int64_t rows, int64_t columns)
      : rows(rows), columns(columns), column_tiles(tiles(columns, kColumns)), blocks(row_tiles() * column_tiles) {}

  int64_t row_tiles() const { return tiles(rows, kRows); }

  SPARSENN_INLINE int64_t first_row(int64_t block) const { return block / column_tiles * kRows; }
  SPARSENN_INLINE int64_t first_column(int64_t block) const { return block % column_tiles * kColumns; }

  // Of the thread's columns the first; they are all inside or all outside.
  SPARSENN_INLINE int64_t column(int64_t block, int thread) const { return first_column(block) + thread % kLanes * N; }

  // Calls body(row, at) for the thread's rows of a tile whose columns are inside: where they are, from `column` on.
  template <class Body>
  SPARSENN_INLINE void for_each_row(int64_t block, int thread, int64_t column, const Body& body) const {
    const int64_t first = first_row(block);
    SPARSENN_UNROLL_4
    for (int r = thread / kLanes; r < kRows; r += kGroups) {
      if (first + r >= rows) return;
      body(first + r, (first + r) * columns + column);
    }
  }
};

// Whether rows of a matrix can be read by vectors of 16 bytes.
template <class T>
bool takes_vectors(int64_t columns, std::initializer_list<const void*> pointers) {
  uintptr_t bits = static_cast<uintptr_t>(columns) * sizeof(T);
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  return bits % 16 == 0;
}

// How many columns a thread has then: a tile of more than 128 would keep too many sums.
template <class T>
constexpr int kTileVector = 16 / sizeof(T) < 4 ? 16 / sizeof(T) : 4;

}  // namespace sparsenn::cuda
