// Launches on the host, for tests: the .cu files compile with this in the place of csrc/cuda/launch.cuh, and every
// kernel runs on memory of the host, thread after thread. What the tables, the walks and the operations do is the same
// code.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "cuda/grid.h"
#include "cuda/phases.h"
#include "cuda/team.h"

namespace sparsenn::cuda {

// What tests set and ask.
struct Emulation {
  int64_t blocks = 7;  // at most
  bool large_parameters = true;
  int64_t shared_bytes = 64 << 10;  // that a block can have in common
  int64_t launches = 0;
};
inline Emulation emulation;

template <class Pack>
SPARSENN_INLINE Pack read_words(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Pack)) std::abort();
  Pack pack;
  memcpy(&pack, from, sizeof(Pack));
  return pack;
}

template <class Pack>
SPARSENN_INLINE void write_words(void* to, const Pack& pack) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Pack)) std::abort();
  memcpy(to, &pack, sizeof(Pack));
}

// Threads come one after the other, and each adds its own.
SPARSENN_INLINE void add_counts(int64_t* to, uint32_t counted, int) { *to += counted; }

// The last thread comes first.
SPARSENN_INLINE void write_sums(double* to, const double (&sums)[kMeasures], int thread) {
  for (int k = 0; k < kMeasures; ++k) to[k] = sums[k] + (thread == kThreads - 1 ? 0 : to[k]);
}

inline void clear(int64_t* data, int64_t stride, int64_t count, void*) {
  for (int64_t n = 0; n < count; ++n) data[n * stride] = 0;
}

inline bool has_large_parameters() { return emulation.large_parameters; }

using Kernel = void (*)(const void* table, const void* op, int64_t block, int64_t blocks, int thread);

template <class Walk, int kWords, class Op>
void kernel(const void* table, const void* op, int64_t block, int64_t blocks, int thread) {
  Walk::run(*static_cast<const Table<kWords>*>(table), *static_cast<const Op*>(op), block, blocks, thread);
}

template <class Walk, int kWords, class Op>
const void* kernel_of() {
  static_assert(sizeof(Table<kWords>) + sizeof(Op) <= (kWords > 4096 / 8 ? 32764 : 4096));
  return reinterpret_cast<const void*>(&kernel<Walk, kWords, Op>);
}

// The last thread comes first: no result may depend on the order.
inline void launch(const void* kernel, const void* table, const void* op, int64_t chunks, void*) {
  ++emulation.launches;
  const int64_t blocks = std::min(chunks, emulation.blocks);
  for (int64_t block = blocks - 1; block >= 0; --block) {
    for (int thread = kThreads - 1; thread >= 0; --thread) {
      reinterpret_cast<Kernel>(const_cast<void*>(kernel))(table, op, block, blocks, thread);
    }
  }
}

template <class Op>
void launch_phases(const Op& op, void*) {
  ++emulation.launches;
  for (int64_t block = op.blocks - 1; block >= 0; --block) {
    typename Op::Shared shared;
    memset(&shared, 0xff, sizeof(shared));  // NaN
    for_each_phase<Op::kPhases>([&](auto phase) {
      for (int thread = kThreads - 1; thread >= 0; --thread) op.template phase<phase>(block, thread, shared);
    });
  }
}

// Bodies come one after the other, the last first.
struct Team {
  template <class Body>
  void each(uint32_t count, const Body& body) const {
    for (uint32_t i = count; i-- > 0;) body(i);
  }
};

inline int64_t most_shared_bytes() { return emulation.shared_bytes; }

inline void upload(void* to, const void* from, int64_t bytes, void*) { memcpy(to, from, bytes); }

template <class Op>
void launch_team(const Op& op, void*) {
  ++emulation.launches;
  for (int64_t block = op.blocks - 1; block >= 0; --block) {
    std::vector<double> shared(op.shared_bytes / sizeof(double) + 1);
    memset(shared.data(), 0xff, shared.size() * sizeof(double));  // NaN
    op.run(block, Team{}, shared.data());
  }
}

}  // namespace sparsenn::cuda

#include "cuda/run.h"
