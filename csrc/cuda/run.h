// From tensors to launches. Host code; launch.cuh, or in tests its emulation, says what a launch is.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/grid.h"
#include "cuda/layout.h"

namespace sparsenn::cuda {

// A kernel's parameters may take 4 kB on every driver, and nearly 32 kB on those since CUDA 12.1. An operation needs up
// to 256 bytes beside its table.
constexpr int kSmallTable = (4096 - 32 - 256) / 8;
constexpr int kLargeTable = (32764 - 32 - 256) / 8;

// From more factors on, an element of a tensor that is not flat takes the operation for any depth, and many tensors
// take more launches: the kernels in question would be many and large, and hardly ever run.
constexpr int kMaxSpecialDepth = 4;

// An operation without its type: its kernels, and the parameters that they take behind their tables.
struct Operation {
  const char* name;
  const void *flat, *flat_large, *strided;  // flat_large is null where there is none
  const void *parameter, *strided_parameter;
  int64_t chunk;
  int extras;  // words of its own for each tensor
};

// Op and Deep do the same for a known and for any depth. kOne: the table never holds more than one tensor.
template <bool kOne, class Op, class Deep>
Operation operation(const char* name, const Op& op, const Deep& deep) {
  constexpr bool kKnown = Op::kDepth > 0, kSpecial = kKnown && Op::kDepth <= kMaxSpecialDepth;
  Operation result{name, nullptr, nullptr, nullptr, &op, &deep, Flat::kChunk<Op>, extras_of<Op>()};
  result.flat = kernel_of<Flat, kOne && kKnown ? kEntryHead + Op::kOperands + extras_of<Op>() : kSmallTable, Op>();
  if constexpr (kSpecial && !kOne) result.flat_large = kernel_of<Flat, kLargeTable, Op>();
  if constexpr (kSpecial) {
    result.strided = kernel_of<Strided, kSmallTable, Op>();
    result.strided_parameter = &op;
  } else {
    result.strided = kernel_of<Strided, kSmallTable, Deep>();
  }
  return result;
}

[[noreturn]] inline void refuse(const Operation& operation, int64_t operands, int64_t dim) {
  throw std::runtime_error(
      "sparsenn::" + std::string(operation.name) + ": the CUDA kernel can't take " + std::to_string(operands) +
      " tensors for one weight" +
      (dim ? " whose strides differ in " + std::to_string(dim) + " dimensions; pass contiguous ones"
           : "; use fewer factors"));
}

template <class Table>
void add_to(Table& table, const TensorView* const* operands, const uint64_t* extras, const Layout& layout,
            int64_t chunk) {
  uintptr_t bits = 0;
  for (int k = 0; k < table.operands; ++k) bits |= reinterpret_cast<uintptr_t>(operands[k]->data);
  uint64_t* words = table.add(operands[0]->numel, bits % 16 == 0, chunk);
  for (int k = 0; k < table.operands; ++k) *words++ = reinterpret_cast<uintptr_t>(operands[k]->data);
  words = std::copy_n(extras, table.extras, words);
  for (int64_t i = 0; i < layout.dim(); ++i, words += Row::words(table.operands)) {
    Row::set(words, layout.size(i), layout.strides(i), table.operands);
  }
}

// One launch for a tensor whose operands lie in memory in different ways.
inline void run_strided(const Operation& operation, const TensorView* const* operands, int64_t count,
                        const uint64_t* extras, const Layout& layout, void* stream) {
  if (!Table<kSmallTable>::fits(count, layout.dim(), operation.extras)) refuse(operation, count, layout.dim());
  Table<kSmallTable> table(static_cast<int>(count), static_cast<int>(layout.dim()), operation.extras);
  add_to(table, operands, extras, layout, Strided::kChunk);
  launch(operation.strided, &table, operation.strided_parameter, table.chunks, stream);
}

// Launches for those of the tensors that are flat: as many in each as its table holds.
template <int kWords>
void run_flat(const Operation& operation, const void* kernel, const std::vector<const TensorView*>& tensors,
              const std::vector<uint64_t>& extras, const std::vector<int64_t>& flat, int64_t operands, void* stream) {
  Table<kWords> table(static_cast<int>(operands), 0, operation.extras);
  for (const int64_t n : flat) {
    if (table.full()) {
      launch(kernel, &table, operation.parameter, table.chunks, stream);
      table.clear();
    }
    add_to(table, tensors.data() + n * operands, extras.data() + n * operation.extras, Layout::flat_one(),
           operation.chunk);
  }
  launch(kernel, &table, operation.parameter, table.chunks, stream);
}

// Runs an operation on tensors, each with so many operands, one after the other in the list, as are the words of its
// own. `model` is the number of the operand whose order in memory is followed.
inline void run(const Operation& operation, const std::vector<const TensorView*>& tensors, int64_t operands,
                int64_t model, void* stream, const std::vector<uint64_t>& extras = {}) {
  if (!Table<kSmallTable>::fits(operands, 0, operation.extras)) refuse(operation, operands, 0);
  const int64_t count = static_cast<int64_t>(tensors.size()) / operands;
  std::vector<int64_t> flat;
  flat.reserve(count);
  for (int64_t n = 0; n < count; ++n) {
    const TensorView* const* own = tensors.data() + n * operands;
    if (own[0]->numel == 0) continue;
    const Layout layout(own, operands, *own[model]);
    if (layout.flat()) {
      flat.push_back(n);
    } else {
      run_strided(operation, own, operands, extras.data() + n * operation.extras, layout, stream);
    }
  }
  if (flat.empty()) return;
  const int64_t words = static_cast<int64_t>(flat.size()) * (kEntryHead + operands + operation.extras);
  if (words > kSmallTable && operation.flat_large && has_large_parameters()) {
    run_flat<kLargeTable>(operation, operation.flat_large, tensors, extras, flat, operands, stream);
  } else {
    run_flat<kSmallTable>(operation, operation.flat, tensors, extras, flat, operands, stream);
  }
}

}  // namespace sparsenn::cuda
