// From tensors to launches. Host code; launch.cuh, or in tests its emulation, says what a launch is.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/grid.h"
#include "cuda/layout.h"

namespace sparsenn::cuda {

// A kernel's parameters may take 4 kB on every driver, and nearly 32 kB on those since CUDA 12.1. An operation needs up to 256
// bytes beside its table.
constexpr int kSmallTable = (4096 - 32 - 256) / 8;
constexpr int kLargeTable = (32764 - 32 - 256) / 8;

inline bool is_aligned(const TensorView* const* operands, int64_t count) {
  uintptr_t bits = 0;
  for (int64_t k = 0; k < count; ++k) bits |= reinterpret_cast<uintptr_t>(operands[k]->data);
  return bits % 16 == 0;
}

template <class Table>
void add_to(Table& table, const TensorView* const* operands, const Layout& layout, int64_t chunk) {
  uint64_t* words = table.add(operands[0]->numel, is_aligned(operands, table.operands), chunk);
  for (int64_t k = 0; k < table.operands; ++k) *words++ = reinterpret_cast<uintptr_t>(operands[k]->data);
  for (int64_t i = 0; i < layout.dim(); ++i, words += Row::words(table.operands)) {
    Row::set(words, layout.size(i), layout.strides(i), table.operands);
  }
}

[[noreturn]] inline void refuse(const char* name, int64_t operands, int64_t dim) {
  const std::string of = std::to_string(operands) + " tensors";
  throw std::runtime_error(
      dim == 0 ? std::string("sparsenn::") + name + ": the CUDA kernel can't take " + of +
                     " for one weight; use fewer factors"
               : std::string("sparsenn::") + name + ": the CUDA kernel can't take " + of + " whose strides differ in " +
                     std::to_string(dim) + " dimensions; pass contiguous ones, or fewer factors");
}

// Runs the operation where operands lie in memory in different ways: one launch for the tensor.
template <class Op>
void run_strided(const char* name, const Op& op, const TensorView* const* operands, int64_t count, const Layout& layout,
                 void* stream) {
  using Small = Table<kSmallTable>;
  if (!Small::fits(count, layout.dim())) refuse(name, count, layout.dim());
  Small table(count, layout.dim());
  add_to(table, operands, layout, Strided::kChunk<Op>);
  launch<Strided>(table, op, stream);
}

// Runs the operation on one tensor. The model is the operand whose order in memory is followed.
template <class Op>
void run_one(const char* name, const Op& op, const std::vector<const TensorView*>& operands, const TensorView& model,
             void* stream) {
  if (model.numel == 0) return;
  const int64_t count = static_cast<int64_t>(operands.size());
  const Layout layout(operands.data(), count, model);
  if (!layout.flat()) return run_strided(name, op, operands.data(), count, layout, stream);
  using One = Table<Op::kOperands ? kEntryHead + Op::kOperands : kSmallTable>;
  if (!One::fits(count)) refuse(name, count, 0);
  One table(count);
  add_to(table, operands.data(), layout, Flat::kChunk<Op>);
  launch<Flat>(table, op, stream);
}

// Runs the operation on tensors that are flat, as many in a launch as its table holds.
template <int kWords, class Op>
void run_tables(const Op& op, const std::vector<const TensorView*>& flat, int64_t operands, void* stream) {
  const Layout none = Layout::none();
  Table<kWords> table(operands);
  for (size_t n = 0; n < flat.size(); n += operands) {
    if (table.full()) {
      launch<Flat>(table, op, stream);
      table.clear();
    }
    add_to(table, flat.data() + n, none, Flat::kChunk<Op>);
  }
  launch<Flat>(table, op, stream);
}

// Runs the operation on many tensors; place(n, operands) fills in the operands of the n-th, the model first.
template <class Op, class Place>
void run_many(const char* name, const Op& op, int64_t count, int64_t operands, const Place& place, void* stream) {
  if (!Table<kSmallTable>::fits(operands)) refuse(name, operands, 0);
  std::vector<const TensorView*> own(operands), flat;
  flat.reserve(count * operands);
  for (int64_t n = 0; n < count; ++n) {
    place(n, own.data());
    if (own[0]->numel == 0) continue;
    const Layout layout(own.data(), operands, *own[0]);
    if (layout.flat()) {
      flat.insert(flat.end(), own.begin(), own.end());
    } else {
      run_strided(name, op, own.data(), operands, layout, stream);
    }
  }
  if (flat.empty()) return;
  const int64_t words = static_cast<int64_t>(flat.size()) / operands * (kEntryHead + operands);
  if (words > kSmallTable && has_large_parameters()) {
    run_tables<kLargeTable>(op, flat, operands, stream);
  } else {
    run_tables<kSmallTable>(op, flat, operands, stream);
  }
}

}  // namespace sparsenn::cuda
