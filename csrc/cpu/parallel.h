// Cuts tensors into blocks that stay in the first-level cache, and the blocks among threads.
#pragma once

#include <algorithm>
#include <vector>

#include "launchers.h"

namespace sparsenn::cpu {

constexpr int64_t kBlock = 2048;          // elements of one tensor that a kernel visits at a time
constexpr int64_t kBlocksPerThread = 16;  // fewer are not worth waking a thread for

void parallel_for(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// Calls body(begin, end) for parts of [0, size), on any thread.
template <class Body>
void for_each_part(int64_t size, int64_t grain, const Body& body) {
  parallel_for(
      size, grain, [](int64_t begin, int64_t end, void* opaque) { (*static_cast<const Body*>(opaque))(begin, end); },
      const_cast<Body*>(&body));
}

// The number of each tensor's first block, over all tensors, and how many there are.
inline std::vector<int64_t> first_blocks(const TensorView* tensors, int64_t count) {
  std::vector<int64_t> first(count + 1, 0);
  for (int64_t t = 0; t < count; ++t) first[t + 1] = first[t] + (tensors[t].numel + kBlock - 1) / kBlock;
  return first;
}

// Calls body(tensor, begin, size) for every block of every tensor, where each thread gets a body of its own from
// make_body(). The work is elementwise: the bits don't depend on the threads.
template <class MakeBody>
void for_each_block(const TensorView* tensors, int64_t count, const MakeBody& make_body) {
  const std::vector<int64_t> first_block = first_blocks(tensors, count);
  struct Context {
    const std::vector<int64_t>& first_block;
    const TensorView* tensors;
    const MakeBody& make_body;
  } context{first_block, tensors, make_body};
  parallel_for(
      first_block.back(), kBlocksPerThread,
      [](int64_t begin, int64_t end, void* opaque) {
        const auto& [first_block, tensors, make_body] = *static_cast<const Context*>(opaque);
        auto body = make_body();
        auto tensor = std::upper_bound(first_block.begin(), first_block.end(), begin) - first_block.begin() - 1;
        for (int64_t block = begin; block < end; ++block) {
          while (block >= first_block[tensor + 1]) ++tensor;
          const int64_t offset = (block - first_block[tensor]) * kBlock;
          body(tensor, offset, std::min(kBlock, tensors[tensor].numel - offset));
        }
      },
      &context);
}

}  // namespace sparsenn::cpu
