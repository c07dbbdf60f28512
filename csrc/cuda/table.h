// What a kernel knows of the tensors it visits, small enough to travel as its parameter: no memory to allocate, nothing
// to copy, and a captured graph keeps its own. Host and device.
#pragma once

#include "math/scalar.h"

namespace sparsenn::cuda {

// One tensor in a table: its first chunk, its size (twice, plus 1 where vector accesses are allowed), its operands'
// addresses, words whose meaning is the operation's, and, where the operands are not flat, the rows of their layout.
constexpr int kEntryHead = 2;

class Entry {
 public:
  SPARSENN_INLINE explicit Entry(const uint64_t* words) : words_(words) {}

  SPARSENN_INLINE int64_t first_chunk() const { return static_cast<int64_t>(words_[0]); }
  SPARSENN_INLINE int64_t size() const { return static_cast<int64_t>(words_[1] >> 1); }
  SPARSENN_INLINE bool aligned() const { return words_[1] & 1; }
  template <class T>
  SPARSENN_INLINE T* operand(int k) const {
    return reinterpret_cast<T*>(words_[kEntryHead + k]);
  }
  // The operands' addresses are the first words, the operation's own words follow.
  SPARSENN_INLINE uint64_t word(int k) const { return words_[kEntryHead + k]; }
  SPARSENN_INLINE const uint64_t* rows(int words) const { return words_ + kEntryHead + words; }

 private:
  const uint64_t* words_;
};

// One dimension of a layout: its size, the operands' strides, and what divides an index by the size without a division,
// which in 64 bits is a slow subroutine on a GPU.
class Row {
 public:
  SPARSENN_INLINE explicit Row(const uint64_t* words) : words_(words) {}

  static SPARSENN_INLINE constexpr int words(int operands) { return 2 + operands; }

  // With 2^(shift - 1) < size <= 2^shift, the factor is 2^(63 + shift) / size, rounded up; it has 64 bits, and its
  // error is too small to show in the quotient of any index below 2^63 (Granlund and Montgomery 1994, Theorem 4.2).
  static void set(uint64_t* words, int64_t size, const int64_t* strides, int64_t operands) {
    uint64_t shift = 1;
    while (int64_t{1} << shift < size) ++shift;
    words[0] = static_cast<uint64_t>(size) | shift << kShiftAt;
    words[1] = static_cast<uint64_t>((static_cast<unsigned __int128>(1) << (63 + shift)) / size + 1);
    for (int64_t k = 0; k < operands; ++k) words[2 + k] = static_cast<uint64_t>(strides[k]);
  }

  // Splits an index into the coordinate along this dimension, which is returned, and the index of what lies outside.
  SPARSENN_INLINE int64_t take_coordinate(int64_t& index) const {
    const uint64_t quotient = high_product(static_cast<uint64_t>(index), words_[1]) >> ((words_[0] >> kShiftAt) - 1);
    const int64_t coordinate = index - static_cast<int64_t>(quotient * (words_[0] & kSizeMask));
    index = static_cast<int64_t>(quotient);
    return coordinate;
  }

  SPARSENN_INLINE int64_t stride(int k) const { return static_cast<int64_t>(words_[2 + k]); }

 private:
  static constexpr int kShiftAt = 56;
  static constexpr uint64_t kSizeMask = (uint64_t{1} << kShiftAt) - 1;

  static SPARSENN_INLINE uint64_t high_product(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
    return __umul64hi(a, b);
#else
    return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
  }

  const uint64_t* words_;
};

// kWords: the room, of all entries together; tables differ in nothing else, and one is a valid start of a larger one.
// The chunks of all tensors are numbered through; blocks take them by their number.
template <int kWords>
struct Table {
  int64_t chunks = 0;
  int32_t count = 0, stride;      // entries, and words of each
  int32_t operands, dim, extras;  // of each entry; dim is 0 where they are flat; extras are the operation's own words
  uint64_t words[kWords];

  explicit Table(int operands, int dim = 0, int extras = 0)
      : stride(static_cast<int32_t>(kEntryHead + operands + extras + dim * Row::words(operands))),
        operands(static_cast<int32_t>(operands)),
        dim(static_cast<int32_t>(dim)),
        extras(static_cast<int32_t>(extras)) {}

  static constexpr bool fits(int64_t operands, int64_t dim = 0, int64_t extras = 0) {
    return kEntryHead + operands + extras + dim * Row::words(operands) <= kWords;
  }

  bool full() const { return (count + 1) * stride > kWords; }

  void clear() { chunks = count = 0; }

  // Adds a tensor and returns the place for its operands' addresses, extra words and rows.
  uint64_t* add(int64_t size, bool aligned, int64_t chunk) {
    uint64_t* const words_of_entry = words + count++ * stride;
    words_of_entry[0] = static_cast<uint64_t>(chunks);
    words_of_entry[1] = static_cast<uint64_t>(size) << 1 | (aligned ? 1 : 0);
    chunks += (size + chunk - 1) / chunk;
    return words_of_entry + kEntryHead;
  }

  // kStride: words of an entry, where it is known at compile time, else 0.
  template <int kStride>
  SPARSENN_INLINE Entry entry(int32_t n) const {
    return Entry(words + n * (kStride ? kStride : stride));
  }

  // The entry that a chunk belongs to.
  template <int kStride>
  SPARSENN_INLINE int32_t find(int64_t chunk) const {
    int32_t low = 0, high = count;
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      const bool behind = entry<kStride>(middle).first_chunk() <= chunk;
      low = behind ? middle : low;
      high = behind ? high : middle;
    }
    return low;
  }
};

}  // namespace sparsenn::cuda
