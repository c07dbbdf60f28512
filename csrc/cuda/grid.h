// How blocks and threads walk over tensors, as functions of (block, blocks, thread) that also run, and are tested, on
// the host.
//
// An operation is a struct with
//   kDepth      the number of factors, 0 where it is known at run time only;
//   kOperands   the number of tensors it reads and writes at each element, likewise;
//   kWidth      how many elements a thread takes at once where memory allows;
//   prepared()  itself, with what lies on the device read;
//   apply<N>(element)  the work on N consecutive elements, whose operands element.pointer<T>(k) finds.
// It may have words of its own for each tensor: kExtras of them, which element.word(kOperands + k) reads. Where apply
// returns a number, those of all elements of a tensor are added up, and added to the int64 whose address (null: to
// nothing) is the first of these words. Where it says kMeasuredAt, apply takes sums as well, kMeasures of them, to
// which it adds; those of each chunk are written one after the other to the address that is this word of the tensor.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cuda/table.h"
#include "math/measures.h"

#if defined(__CUDACC__)
#define SPARSENN_ROLLED _Pragma("unroll 1")
#define SPARSENN_UNROLL_4 _Pragma("unroll 4")
#else
#define SPARSENN_ROLLED
#define SPARSENN_UNROLL_4
#endif

namespace sparsenn::cuda {

constexpr int kThreads = 256;

// What launch.cuh, or in tests its emulation, defines: one access for all of a pack's bytes.
template <class Pack>
SPARSENN_INLINE Pack read_words(const void* from);
template <class Pack>
SPARSENN_INLINE void write_words(void* to, const Pack& pack);

// Likewise: adds what the threads of a block have counted to a number. All of them call it together.
SPARSENN_INLINE void add_counts(int64_t* to, uint32_t counted, int thread);

// And writes the sums over the threads of a block of what each of them has found, in a fixed order.
SPARSENN_INLINE void write_sums(double* to, const double (&sums)[kMeasures], int thread);

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
  SPARSENN_INLINE uint64_t word(int k) const { return entry_.word(k); }

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
    const uint64_t* words = entry.rows(kOperands + table.extras);
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
  SPARSENN_INLINE uint64_t word(int k) const { return entry_.word(k); }

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
      : entry_(entry),
        rows_(entry.rows(table.operands + table.extras)),
        operands_(table.operands),
        dim_(table.dim),
        index_(index) {}

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
  SPARSENN_INLINE uint64_t word(int k) const { return entry_.word(k); }

 private:
  Entry entry_;
  const uint64_t* rows_;
  int operands_, dim_;
  int64_t index_;
};

template <class Op>
constexpr int extras_of() {
  if constexpr (requires { Op::kExtras; }) {
    return Op::kExtras;
  } else {
    return 0;
  }
}

// Adds up what an operation counts in one tensor, or measures in one chunk.
template <class Op>
class Tally {
 public:
  template <int N, class Element>
  SPARSENN_INLINE void apply(const Op& op, const Element& element) {
    if constexpr (kIsMeasured) {
      op.template apply<N>(element, sums_);
    } else if constexpr (kCounts<Element>) {
      counted_ += op.template apply<N>(element);
    } else {
      op.template apply<N>(element);
    }
  }

  // All threads of a block come here together, after each chunk; `chunk` is its number in the tensor.
  SPARSENN_INLINE void finish_chunk(const Entry& entry, int operands, int64_t chunk, int thread) {
    if constexpr (kIsMeasured) {
      auto* const to = reinterpret_cast<double*>(entry.word(operands + Op::kMeasuredAt));
      write_sums(to + chunk * kMeasures, sums_, thread);
      for (double& sum : sums_) sum = 0;
    }
  }

  // And here after the last one of a tensor.
  template <class Element>
  SPARSENN_INLINE void finish(const Entry& entry, int thread) {
    if constexpr (kCounts<Element>) {
      auto* const to = reinterpret_cast<int64_t*>(entry.word(Op::kOperands));
      if (to) add_counts(to, counted_, thread);
      counted_ = 0;
    }
  }

 private:
  static constexpr bool kIsMeasured = requires { Op::kMeasuredAt; };

  template <class Element>
  static constexpr bool counts() {
    if constexpr (kIsMeasured) {
      return false;
    } else {
      using Result = decltype(std::declval<const Op&>().template apply<1>(std::declval<const Element&>()));
      return !std::is_void_v<Result>;
    }
  }
  template <class Element>
  static constexpr bool kCounts = counts<Element>();

  uint32_t counted_ = 0;
  double sums_[kMeasures] = {};
};

// Tensors whose operands are all flat. Full chunks of aligned operands take vector accesses; misaligned views and the
// rest of a tensor go element by element.
struct Flat {
  template <class Op>
  static constexpr int64_t kChunk = int64_t{kThreads} * Op::kWidth;

  template <class Table, class Op>
  static SPARSENN_INLINE void run(const Table& table, const Op& given, int64_t block, int64_t blocks, int thread) {
    constexpr int kStride = Op::kOperands ? kEntryHead + Op::kOperands + extras_of<Op>() : 0;
    const Op op = given.prepared();
    Tally<Op> tally;
    int32_t last = -1;
    for (int64_t chunk = block; chunk < table.chunks; chunk += blocks) {
      const int32_t own = table.template find<kStride>(chunk);
      if (last >= 0 && own != last) {
        tally.template finish<FlatElement>(table.template entry<kStride>(last), thread);
      }
      last = own;
      const Entry entry = table.template entry<kStride>(own);
      const int64_t chunk_of_entry = chunk - entry.first_chunk(), begin = chunk_of_entry * kChunk<Op>;
      const int64_t size = entry.size() - begin;
      if constexpr (Op::kWidth > 1) {
        if (size >= kChunk<Op> && entry.aligned()) {
          tally.template apply<Op::kWidth>(op, FlatElement(entry, begin + thread * Op::kWidth));
          tally.finish_chunk(entry, table.operands, chunk_of_entry, thread);
          continue;
        }
      }
      const int64_t end = begin + (size < kChunk<Op> ? size : kChunk<Op>);
      SPARSENN_ROLLED
      for (int64_t i = begin + thread; i < end; i += kThreads) tally.template apply<1>(op, FlatElement(entry, i));
      tally.finish_chunk(entry, table.operands, chunk_of_entry, thread);
    }
    if (last >= 0) tally.template finish<FlatElement>(table.template entry<kStride>(last), thread);
  }
};

// One tensor whose operands lie in memory in different ways.
struct Strided {
  static constexpr int64_t kChunk = kThreads;

  template <class Table, class Op>
  static SPARSENN_INLINE void run(const Table& table, const Op& given, int64_t block, int64_t blocks, int thread) {
    using Element = StridedElement<Op::kOperands>;
    const Op op = given.prepared();
    const Entry entry = table.template entry<0>(0);
    Tally<Op> tally;
    for (int64_t chunk = block; chunk < table.chunks; chunk += blocks) {
      const int64_t i = chunk * kChunk + thread;
      if (i < entry.size()) tally.template apply<1>(op, Element(table, entry, i));
      tally.finish_chunk(entry, table.operands, chunk, thread);
    }
    tally.template finish<Element>(entry, thread);
  }
};

}  // namespace sparsenn::cuda
