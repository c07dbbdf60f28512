// How the operands of one tensor lie in memory, with as few dimensions as describe it. Host code, without CUDA.
#pragma once

#include <algorithm>
#include <vector>

#include "launchers.h"

namespace sparsenn::cuda {

class Layout {
 public:
  // The operands' elements are visited in the order in which the model, one of them, lies in memory.
  Layout(const TensorView* const* operands, int64_t count, const TensorView& model) : operands_(count), dim_(0) {
    if (is_dense(model) && std::all_of(operands, operands + count, [&](const TensorView* operand) {
          return std::equal(model.strides, model.strides + model.dim, operand->strides);
        })) {
      return;
    }
    std::vector<int64_t> axes;
    for (int64_t i = 0; i < model.dim; ++i) {
      if (model.sizes[i] != 1) axes.push_back(i);
    }
    std::stable_sort(axes.begin(), axes.end(),
                     [&](int64_t a, int64_t b) { return model.strides[a] > model.strides[b]; });
    for (; !axes.empty(); axes.pop_back()) add(operands, axes.back(), model.sizes[axes.back()]);
    if (dim_ == 1 && std::all_of(rows_.begin() + 1, rows_.end(), [](int64_t stride) { return stride == 1; })) {
      dim_ = 0;
      rows_.clear();
    }
  }

  static Layout flat_one() { return Layout(); }

  // Whether element i of every operand is i elements behind its first.
  bool flat() const { return dim_ == 0; }

  int64_t dim() const { return dim_; }

  // Of the i-th dimension from the innermost on.
  int64_t size(int64_t i) const { return rows_[i * (operands_ + 1)]; }
  const int64_t* strides(int64_t i) const { return rows_.data() + i * (operands_ + 1) + 1; }

 private:
  Layout() : operands_(0), dim_(0) {}

  // Whether the tensor's elements fill one piece of memory, as they do for nearly all: then equal strides make operands
  // flat.
  static bool is_dense(const TensorView& view) {
    int64_t span = 1;
    for (int64_t i = 0; i < view.dim; ++i) span += (view.sizes[i] - 1) * view.strides[i];
    if (span != view.numel) return false;
    // A span that fits can still hold overlaps or a stride of 0: some order of the dimensions must multiply up to it.
    int64_t expected = 1;
    for (int64_t found = 0; found < view.dim; ++found) {
      if (expected == view.numel) return true;
      int64_t i = 0;
      while (i < view.dim && (view.sizes[i] == 1 || view.strides[i] != expected)) ++i;
      if (i == view.dim) return false;
      expected *= view.sizes[i];
    }
    return expected == view.numel;
  }

  void add(const TensorView* const* operands, int64_t axis, int64_t size) {
    int64_t* const last = rows_.data() + rows_.size() - (dim_ ? operands_ + 1 : 0);
    bool joins = dim_ > 0;
    for (int64_t k = 0; joins && k < operands_; ++k) joins = operands[k]->strides[axis] == last[k + 1] * last[0];
    if (joins) {
      last[0] *= size;
      return;
    }
    rows_.push_back(size);
    for (int64_t k = 0; k < operands_; ++k) rows_.push_back(operands[k]->strides[axis]);
    ++dim_;
  }

  int64_t operands_, dim_;
  std::vector<int64_t> rows_;  // for each dimension its size and every operand's stride
};

}  // namespace sparsenn::cuda
