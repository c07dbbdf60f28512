// Operations whose threads share what they have found: a block runs one phase after the other, with a barrier between
// them. Like the walks of grid.h they are functions of (block, thread), which also run, and are tested, on the host.
//
// An operation is a struct with
//   kPhases            how many there are;
//   Shared             what the threads of a block have in common;
//   blocks             how many blocks of work there are;
//   phase<P>(block, thread, shared)
#pragma once

#include "cuda/grid.h"

namespace sparsenn::cuda {

// Calls body(std::integral_constant<int, P>) for each phase.
template <int kPhases, class Body>
SPARSENN_INLINE void for_each_phase(const Body& body) {
  if constexpr (kPhases > 1) for_each_phase<kPhases - 1>(body);
  body(std::integral_constant<int, kPhases - 1>{});
}

}  // namespace sparsenn::cuda
