// Random orders of samples by counter; sparsenn/ops/permutation.py says what they are.
#pragma once

#include "math/scalar.h"

namespace sparsenn {

// The 64-bit finalizer of SplitMix64 (Steele, Lea and Flood 2014).
SPARSENN_INLINE uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The order of `size` samples, at most 2^31 of them, in one epoch of one seed.
struct Permutation {
  static constexpr int kRounds = 8;
  uint32_t size, a, b;
  uint32_t inverse;  // floor((2^32 - 1) / b)
  uint32_t keys[kRounds];

  SPARSENN_INLINE Permutation() : size(0), a(1), b(1), inverse(0), keys{} {}

  SPARSENN_INLINE Permutation(int64_t count, int64_t seed, int64_t epoch) : size(static_cast<uint32_t>(count)), a(1) {
    constexpr uint64_t kWeyl = 0x9e3779b97f4a7c15u;
    // The least a with a a >= size; the root is exact, or off by one.
    a = static_cast<uint32_t>(std::sqrt(static_cast<double>(size)));
    if (static_cast<uint64_t>(a) * a < size || a == 0) ++a;
    b = size ? (size - 1) / a + 1 : 1;
    inverse = 0xffffffffu / b;
    const uint64_t base = mixed(mixed(static_cast<uint64_t>(seed)) + kWeyl * (static_cast<uint64_t>(epoch) + 1));
    SPARSENN_UNROLL
    for (int k = 0; k < kRounds; ++k) keys[k] = static_cast<uint32_t>(mixed(base + kWeyl * (k + 1u)) >> 32);
  }

  static SPARSENN_INLINE uint32_t high_product(uint32_t x, uint32_t y) {
    return static_cast<uint32_t>(static_cast<uint64_t>(x) * y >> 32);
  }

  // A number below `base`, by the 32-bit finalizer of MurmurHash3 (Appleby).
  static SPARSENN_INLINE uint32_t below(uint32_t base, uint32_t digit, uint32_t key) {
    uint32_t x = digit ^ key;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    // high_product for a base of at most 16 bits: vectors multiply 32 bits by 32 faster than they widen them.
    return ((x >> 16) * base + ((x & 0xffffu) * base >> 16)) >> 16;
  }

  // The quotient and the rest by b.
  SPARSENN_INLINE void split(uint32_t i, uint32_t& left, uint32_t& right) const {
    left = high_product(i, inverse);  // or one less: vectors have no division of integers
    right = i - left * b;
    left += right >= b ? 1u : 0u;
    right -= right >= b ? b : 0u;
  }

  // Two rounds of the network, the k-th and the next.
  SPARSENN_INLINE void rounds(int k, uint32_t& left, uint32_t& right) const {
    left += below(a, right, keys[k]);
    left -= left >= a ? a : 0u;
    right += below(b, left, keys[k + 1]);
    right -= right >= b ? b : 0u;
  }

  // Once through the network: a bijection of the numbers below a b, which is less than 2^32.
  SPARSENN_INLINE uint32_t once(uint32_t i) const {
    uint32_t left, right;
    split(i, left, right);
    SPARSENN_UNROLL
    for (int k = 0; k < kRounds; k += 2) rounds(k, left, right);
    return left * b + right;
  }

  // The sample that comes i-th.
  SPARSENN_INLINE int64_t operator()(int64_t i) const {
    uint32_t found = static_cast<uint32_t>(i);
    if (size < 2) return i;
    do found = once(found);
    while (found >= size);
    return found;
  }
};

}  // namespace sparsenn
