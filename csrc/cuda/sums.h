// Sums over the threads of a block, in a fixed order.
#pragma once

#include "cuda/phases.h"

namespace sparsenn::cuda {

constexpr int kGroups = 16;

struct Sums {
  double threads[kThreads], groups[kGroups];
};

// In phases 1 and 2 of an operation, what its threads have put there: first by groups of threads, then the groups.
template <int P>
SPARSENN_INLINE void add_up(int thread, Sums& shared, double* to) {
  constexpr int kSize = kThreads / kGroups;
  if constexpr (P == 1) {
    if (thread >= kGroups) return;
    double sum = 0;
    for (int i = 0; i < kSize; ++i) sum += shared.threads[thread * kSize + i];
    shared.groups[thread] = sum;
  } else {
    if (thread > 0) return;
    double sum = 0;
    for (int i = 0; i < kGroups; ++i) sum += shared.groups[i];
    *to = sum;
  }
}

}  // namespace sparsenn::cuda
