// How blocks and threads walk over tensors, as functions of (block, blocks, thread) that also run, and are tested, on
// the host.
//
// An operation is a struct with
//   kDepth      the number of factors, 0 where it is known at run time only;
//   kOperands   the number of tensors it reads and writes at each element, likewise;
//   kWidth      how many elements a thread takes at once where memory allows;
//   prepared()  itself, with what lies on the device read;
//   apply<N>(element)  the work on N consecutive elements, whose operands element.pointer<T>(k) finds.
#pragma once

#include <algorithm>

#include "cuda/table.h"

#if defined(__CUDACC__)
#define SPARSENN_ROLLED _Pragma("unroll 1")
#else
#define SPARSENN_ROLLED
#endif

namespace sparsenn::cuda {

constexpr int kThreads = 256;

// What launch.cuh, or in tests its emulation, defines: one access for all of a pack's bytes.
template <class Pack>
SPARSENN_INLINE Pack read_words(const void* from);
template <class Pack>
SPARSENN_INLINE void write_words(void* to, const Pack& pack);

// N elements of a type that are read or written by one access of up to 16 bytes.
template <class T, int N>
struct Pack {
  T values[N];
};

template <int N, class T>
SPARSENN_INLINE Pack<T, N> read(const T* from) {
  if constexpr (N == 1) {
    return {{*from}};
  } else {
    return read_words<Pack<T, N>>(from);
  }
}

template <int N, class T>
SPARSENN_INLINE void write(T* to, const Pack<T, N>& pack) {
  if constexpr (N == 1) {
    *to = pack.values[0];
  } else {
    write_words(to, pack);
  }
}

class FlatElement {
 public:
  SPARSENN_INLINE FlatElement(Entry entry, int64_t index) : entry_(entry), index_(index) {}

  template <class T>
  SPARSENN_INLINE T* pointer(int k) const {
    return entry_.operand<T>(k) + index_;
  }

 private:
  Entry entry_;
  int64_t index_;
};

// kOperands > 0: the operands' offsets are found together and kept.
template <int kOperands>
class StridedElement {
 public:
  template <class Table>
  SPARSENN_INLINE StridedElement(const Table& table, Entry entry, int64_t index) : entry_(entry) {
    SPARSENN_UNROLL
    for (int k = 0; k < kOperands; ++k) offsets_[k] = 0;
    const uint64_t* words = entry.rows(kOperands);
    for (int i = table.dim; i > 0; --i, words += Row::words(kOperands)) {
      const Row row(words);
      const int64_t coordinate = i > 1 ? row.take_coordinate(index) : index;
      SPARSENN_UNROLL
      for (int k = 0; k < kOperands; ++k) offsets_[k] += coordinate * row.stride(k);
    }
  }

  template <class T>
  SPARSENN_INLINE T* pointer(int k) const {
    return entry_.operand<T>(k) + offsets_[k];
  }

 private:
  Entry entry_;
  int64_t offsets_[kOperands];
};

// Any number of operands: an offset is found whenever it is asked for.
template <>
class StridedElement<0> {
 public:
  template <class Table>
  SPARSENN_INLINE StridedElement(const Table& table, Entry entry, int64_t index)
      : entry_(entry), rows_(entry.rows(table.operands)), operands_(table.operands), dim_(table.dim), index_(index) {}

  template <class T>
  SPARSENN_INLINE T* pointer(int k) const {
    int64_t rest = index_, offset = 0;
    const uint64_t* words = rows_;
    for (int i = dim_; i > 0; --i, words += Row::words(operands_)) {
      const Row row(words);
      offset += (i > 1 ? row.take_coordinate(rest) : rest) * row.stride(k);
    }
    return entry_.operand<T>(k) + offset;
  }

 private:
  Entry entry_;
  const uint64_t* rows_;
  int operands_, dim_;
  int64_t index_;
};

// Tensors whose operands are all flat. Full chunks of aligned operands take vector accesses; misaligned views and the
// rest of a tensor go element by element.
struct Flat {
  template <class Op>
  static constexpr int64_t kChunk = int64_t{kThreads} * Op::kWidth;

  template <class Table, class Op>
  static SPARSENN_INLINE void run(const Table& table, const Op& given, int64_t block, int64_t blocks, int thread) {
    constexpr int kStride = Op::kOperands ? kEntryHead + Op::kOperands : 0;
    const Op op = given.prepared();
    for (int64_t chunk = block; chunk < table.chunks; chunk += blocks) {
      const Entry entry = table.template entry<kStride>(table.template find<kStride>(chunk));
      const int64_t begin = (chunk - entry.first_chunk()) * kChunk<Op>;
      const int64_t size = entry.size() - begin;
      if constexpr (Op::kWidth > 1) {
        if (size >= kChunk<Op> && entry.aligned()) {
          op.template apply<Op::kWidth>(FlatElement(entry, begin + thread * Op::kWidth));
          continue;
        }
      }
      const int64_t end = begin + (size < kChunk<Op> ? size : kChunk<Op>);
      SPARSENN_ROLLED
      for (int64_t i = begin + thread; i < end; i += kThreads) op.template apply<1>(FlatElement(entry, i));
    }
  }
};

// One tensor whose operands lie in memory in different ways.
struct Strided {
  static constexpr int64_t kChunk = kThreads;

  template <class Table, class Op>
  static SPARSENN_INLINE void run(const Table& table, const Op& given, int64_t block, int64_t blocks, int thread) {
    const Op op = given.prepared();
    const Entry entry = table.template entry<0>(0);
    for (int64_t i = block * kThreads + thread; i < entry.size(); i += blocks * kThreads) {
      op.template apply<1>(StridedElement<Op::kOperands>(table, entry, i));
    }
  }
};

}  // namespace sparsenn::cuda
