// Operations in which the threads of a block work through one thing after another together, as often as the data say:
// like phases.h, but the phases are calls in a program, and what the threads have in common is memory of a size that is
// known when the kernel is launched.
//
// An operation is a struct with
//   blocks                    how many blocks of work there are;
//   shared_bytes              of the memory that the threads of a block have in common;
//   run(block, team, shared)  which calls team.each(count, body): body(i) for all i < count, at most 2^31 - 1, and a
//                             barrier.
// No body may read what another one of the same call writes.
#pragma once

#include "cuda/grid.h"

namespace sparsenn::cuda {

// What launch.cuh, or in tests its emulation, defines.
struct Team;
template <class Op>
void launch_team(const Op& op, void* stream);

// The most bytes that a block can have in common.
inline int64_t most_shared_bytes();

// The same bytes on the device, when what was launched before is done with them. `from` may go when this returns, so
// that no graph can replay it: in a capture it throws.
inline void upload(void* to, const void* from, int64_t bytes, void* stream);

}  // namespace sparsenn::cuda
